//! Audit lines: one for each token, refusal, key change and administrative call, in the log under the component `audit`.
//!
//! A line names the decision, who asked, and the reason code; it carries `kid` and `jti`, never a token.

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Allowed,
    Refused,
}

impl Decision {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Refused => "refused",
        }
    }
}

/// Writes an audit line: `audit!(Decision::Allowed, "issue", caller = …, kid = …)`.
#[macro_export]
macro_rules! audit {
    ($decision:expr, $action:expr $(, $($field:tt)+)?) => {
        ::tracing::info!(target: "audit", decision = $decision.as_str(), $($($field)+,)? "{}", $action)
    };
}
