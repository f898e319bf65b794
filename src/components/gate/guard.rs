//! The decision, without HTTP: caller and request in, admission or denial out, with an audit line
//! in both cases.

use std::sync::Arc;

use super::error::Denial;
use crate::{
    audit,
    identity::{Refusal, Visitor},
    policy::{self, Effect, Host, RuleId, Target, Who, caller_word, same_tailnet},
    telemetry::{audit::Decision, meter::Meter},
};

/// A caller to whom access was granted. As an axum extractor (see [`super::GateLayer`]) it is the
/// layer's result.
#[derive(Debug, Clone, PartialEq)]
pub enum Admitted {
    /// Access by an anonymous rule. Nothing about the caller is passed on, not even whether there
    /// is an identity.
    Anonymous {
        /// Whether the request came from the internet.
        funnel: bool,
    },
    Identified(Arc<Visitor>),
}

impl Admitted {
    /// The caller's identity, if the rule passes it on.
    pub fn visitor(&self) -> Option<&Visitor> {
        match self {
            Self::Anonymous { .. } => None,
            Self::Identified(visitor) => Some(visitor),
        }
    }
}

/// The caller's name in the audit log.
fn audit_name(caller: &Result<Arc<Visitor>, Refusal>) -> String {
    match caller {
        Ok(visitor) => caller_word(visitor),
        Err(refusal) => refusal.code().to_owned(),
    }
}

/// The rules, and the checks that come before them.
#[derive(Debug)]
pub(super) struct Guard {
    policy: Arc<policy::RuleStore>,
    expected_tailnet: Option<String>,
    meter: Meter,
}

impl Guard {
    pub(super) fn new(policy: Arc<policy::RuleStore>, expected_tailnet: Option<String>) -> Self {
        Self {
            policy,
            expected_tailnet,
            meter: Meter::default(),
        }
    }

    /// Counts decisions in `meter` from here on.
    pub(super) fn with_meter(mut self, meter: Meter) -> Self {
        self.meter = meter;
        self
    }

    pub(super) fn meter(&self) -> &Meter {
        &self.meter
    }

    pub(super) fn policy(&self) -> &policy::RuleStore {
        &self.policy
    }

    /// Decides about a request and writes the audit line. `expected` is a tailnet that the asking
    /// proxy requires in addition to the setting's.
    pub(super) fn admit(
        &self,
        caller: Result<Arc<Visitor>, Refusal>,
        target: &Target,
        expected: Option<&str>,
    ) -> Result<Admitted, Denial> {
        let name = audit_name(&caller);
        let (outcome, rule) = self.decide(caller, target, expected);
        self.record(&name, target, &outcome, &rule);
        outcome
    }

    /// Refuses without evaluating the rules, with audit line and metric.
    pub(super) fn refuse(
        &self,
        caller: &Result<Arc<Visitor>, Refusal>,
        target: &Target,
        denial: Denial,
    ) -> Denial {
        let outcome = Err(denial.clone());
        self.record(&audit_name(caller), target, &outcome, &RuleId::End);
        denial
    }

    /// Whether a rule, or a grant of the caller, names this host.
    pub(super) fn names_host(&self, caller: &Result<Arc<Visitor>, Refusal>, host: &Host) -> bool {
        let who = match caller {
            Ok(visitor) => Who::Known(visitor),
            Err(_) => Who::Nobody,
        };
        self.policy.rules().name_host(who, host)
    }

    fn record(
        &self,
        name: &str,
        target: &Target,
        outcome: &Result<Admitted, Denial>,
        rule: &RuleId,
    ) {
        let host = target.host.as_ref().map_or("", |host| host.as_str());
        let path = target
            .path
            .as_ref()
            .map(|path| path.first_segment())
            .unwrap_or_default();
        let (result, reason) = match outcome {
            Ok(Admitted::Identified(_)) => ("allowed", ""),
            Ok(Admitted::Anonymous { .. }) => ("anonymous", ""),
            Err(denial) => ("refused", denial.code()),
        };
        self.meter.decided(result, reason, rule.kind());
        match outcome {
            Ok(Admitted::Identified(_)) => {
                audit!(Decision::Allowed, "gate", caller = name, rule = %rule, host, path);
            }
            Ok(Admitted::Anonymous { .. }) => {
                audit!(Decision::Allowed, "gate", caller = name, anonymous = true, rule = %rule, host, path);
            }
            Err(denial) => {
                audit!(Decision::Refused, "gate", caller = name, reason = denial.code(), rule = %rule, host, path);
            }
        }
    }

    /// Whether access that was granted is still allowed. Writes an audit line only if it is not.
    pub(super) fn recheck(
        &self,
        caller: Result<Arc<Visitor>, Refusal>,
        target: &Target,
    ) -> Result<(), Denial> {
        if self.decide(caller.clone(), target, None).0.is_ok() {
            return Ok(());
        }
        self.admit(caller, target, None).map(drop)
    }

    fn decide(
        &self,
        caller: Result<Arc<Visitor>, Refusal>,
        target: &Target,
        expected: Option<&str>,
    ) -> (Result<Admitted, Denial>, RuleId) {
        if let Err(refusal) = &caller
            && refusal.ends_connection()
        {
            return (Err(Denial::Identity(refusal.clone())), RuleId::End);
        }
        let rules = self.policy.rules();
        let caller = caller.map_err(Denial::Identity).and_then(|visitor| {
            let required = [self.expected_tailnet.as_deref(), expected];
            let is_same = |required: &str| same_tailnet(required, visitor.tailnet());
            if !required.into_iter().flatten().all(is_same) {
                return Err(Denial::WrongTailnet);
            }
            Ok(visitor)
        });
        let who = match &caller {
            Ok(visitor) => Who::Known(visitor),
            Err(Denial::Identity(Refusal::Funnel)) => Who::Funnel,
            Err(Denial::Identity(Refusal::NotRunning { .. } | Refusal::WhoIsFailed(_))) => {
                Who::Doubt
            }
            Err(_) => Who::Nobody,
        };
        let funnel = matches!(who, Who::Funnel);
        let decision = rules.decide(who, target);
        let outcome = match (decision.effect, caller) {
            (Effect::Anonymous, _) => Ok(Admitted::Anonymous { funnel }),
            // The reason for having no identity says more than the rule that denies those without.
            (_, Err(denial)) => Err(denial),
            (Effect::Allow, Ok(visitor)) => Ok(Admitted::Identified(visitor)),
            (Effect::Deny, Ok(_)) => {
                Err(target.unreadable().map_or(Denial::Policy, Denial::Target))
            }
        };
        (outcome, decision.rule)
    }
}
