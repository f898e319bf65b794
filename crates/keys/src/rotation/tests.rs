//! Hand-made histories for each rule, then random ones for all rules at once.

use proptest::prelude::*;

use super::*;

const PLACE: &str = "file:/jwks.json";
const MINUTE: u64 = 60;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

fn policy() -> KeyPolicy {
    KeyPolicy {
        token_life: Duration::from_secs(20 * MINUTE),
        cache_time: Duration::from_secs(5 * MINUTE),
        skew: Duration::from_secs(MINUTE),
        rotate_every: None,
        withdrawn_grace: Duration::from_secs(24 * 60 * MINUTE),
    }
}

/// A directory and a document, with the actions carried out as `jwks::life` does.
#[derive(Debug, Clone, Default)]
struct Store {
    records: Vec<Record>,
    signer: Option<KeyId>,
    /// The document as this server last read it, which it publishes again if the document is lost.
    last: Vec<KeyId>,
}

impl Store {
    fn add(&mut self, created: Timestamp, inherited: bool) -> KeyId {
        let kid = KeyId::generate("tb", created).unwrap();
        let history = if inherited {
            History::inherited(created)
        } else {
            History::new(created)
        };
        self.records.push(Record {
            kid: kid.clone(),
            history,
            can_sign: true,
            has_private_file: true,
            has_public_file: true,
            public: true,
            has_state_file: !inherited,
        });
        kid
    }

    fn observation(&self, document: Option<&Vec<KeyId>>) -> Observation {
        let Some(document) = document else {
            return Observation::Missing;
        };
        let ours = |kid: &&KeyId| self.records.iter().any(|record| record.kid == **kid);
        Observation::Document {
            holds: document.iter().filter(ours).cloned().collect(),
            others: !document.iter().all(|kid| ours(&kid)),
            empty: document.is_empty(),
        }
    }

    fn tick(
        &mut self,
        document: &mut Option<Vec<KeyId>>,
        reachable: bool,
        policy: &KeyPolicy,
        options: PassOptions,
        now: Timestamp,
    ) -> KeyPlan {
        let mut decision = self.look(document, reachable, policy, options, now);
        if reachable
            && decision
                .actions
                .iter()
                .any(|action| matches!(action, Action::Publish(_)))
        {
            let restored = document.get_or_insert_with(|| self.last.clone());
            for action in &decision.actions {
                if let Action::Publish(kid) = action
                    && !restored.contains(kid)
                {
                    restored.push(kid.clone());
                }
            }
            decision = self.look(document, reachable, policy, options, now);
        }
        for action in &decision.actions {
            let position = |kid: &KeyId| {
                self.records
                    .iter()
                    .position(|record| record.kid == *kid)
                    .unwrap()
            };
            match action {
                Action::Publish(_) => unreachable!("published above: {decision:?}"),
                Action::RestorePublic(kid) => {
                    let n = position(kid);
                    self.records[n].has_public_file = true;
                }
                Action::Activate(kid) => {
                    let n = position(kid);
                    record_signing(&mut self.records[n].history, policy, now);
                }
                Action::Retire(kid) => {
                    let n = position(kid);
                    retire(&mut self.records[n].history, now);
                }
                Action::DeletePrivate(kid) => {
                    let n = position(kid);
                    self.records[n].has_private_file = false;
                    self.records[n].can_sign = false;
                }
                Action::Expire(kid) | Action::FinishRemoval(kid) => {
                    document.as_mut().unwrap().retain(|other| other != kid);
                    let n = position(kid);
                    self.records.remove(n);
                }
                Action::DeleteWithdrawn(kid) => {
                    let n = position(kid);
                    self.records.remove(n);
                }
                Action::Generate => {
                    self.add(now, false);
                }
            }
        }
        for record in &mut self.records {
            record.has_state_file = true;
        }
        self.signer = decision.signer.clone().ok();
        if let Some(document) = document
            && reachable
        {
            self.last.clone_from(document);
        }
        decision
    }

    fn look(
        &mut self,
        document: &Option<Vec<KeyId>>,
        reachable: bool,
        policy: &KeyPolicy,
        options: PassOptions,
        now: Timestamp,
    ) -> KeyPlan {
        let observation = if reachable {
            self.observation(document.as_ref())
        } else {
            Observation::Unknown
        };
        observe(&mut self.records, PLACE, &observation, now);
        View {
            place: PLACE,
            observation: &observation,
            policy,
            options,
            now,
        }
        .decide(&self.records)
    }

    fn state(&self, kid: &KeyId) -> Option<KeyState> {
        self.records
            .iter()
            .find(|record| record.kid == *kid)
            .map(|record| state(record, PLACE))
    }
}

const QUIET: PassOptions = PassOptions {
    first_key: false,
    clean: false,
};
const FIRST: PassOptions = PassOptions {
    first_key: true,
    clean: false,
};
const CLEAN: PassOptions = PassOptions {
    first_key: false,
    clean: true,
};

#[test]
fn d10_an_empty_directory_gets_its_first_key_and_it_signs_at_once() {
    let (mut store, mut document) = (Store::default(), None);
    let quiet = store.tick(&mut document, true, &policy(), QUIET, at(1000));
    assert_eq!(quiet.signer, Err(NoSigner::NoKeys));
    assert_eq!(quiet.actions, []);
    store.tick(&mut document, true, &policy(), FIRST, at(1000));
    let decision = store.tick(&mut document, true, &policy(), FIRST, at(1000));
    assert_eq!(document.as_ref().unwrap().len(), 1);
    assert_eq!(decision.signer.as_ref(), Ok(&store.records[0].kid));
    assert_eq!(store.records.len(), 1);
}

#[test]
fn d03_a_key_that_could_not_be_published_never_signs() {
    let (mut store, mut document) = (Store::default(), None);
    let kid = store.add(at(1000), false);
    for now in [1000, 100_000, 10_000_000] {
        let decision = store.tick(&mut document, false, &policy(), QUIET, at(now));
        assert_eq!(
            decision.signer,
            Err(NoSigner::Unpublished { kid: kid.clone() })
        );
    }
}

#[test]
fn d16_a_successor_waits_then_signs_and_the_old_key_rests_then_goes() {
    let (mut store, mut document) = (Store::default(), None);
    let first = store.add(at(1000), false);
    store.tick(&mut document, true, &policy(), QUIET, at(1000));
    let second = store.add(at(2000), false);
    for now in [2000, 2100, 2359] {
        let decision = store.tick(&mut document, true, &policy(), QUIET, at(now));
        assert_eq!(decision.signer, Ok(first.clone()), "at {now}");
    }
    let decision = store.tick(&mut document, true, &policy(), QUIET, at(2360));
    assert_eq!(decision.signer, Ok(second.clone()));
    assert_eq!(store.state(&first), Some(KeyState::Retired));
    store.tick(&mut document, true, &policy(), QUIET, at(2361));
    assert!(
        !store.records[0].has_private_file,
        "the private half of a retired key goes at once"
    );
    let gone = gone_from(&store.records[0].history, &policy()).unwrap();
    let last = store.records[0].history.may_sign_until.unwrap();
    assert!(last >= at(2360) && last <= at(2360 + 600), "{last}");
    assert_eq!(gone, last + SignedDuration::from_secs(1200 + 360));
    store.tick(
        &mut document,
        true,
        &policy(),
        QUIET,
        gone - SignedDuration::from_secs(1),
    );
    assert!(document.as_ref().unwrap().contains(&first));
    store.tick(&mut document, true, &policy(), QUIET, gone);
    assert_eq!(document, Some(vec![second]));
}

#[test]
fn d16_a_key_dated_in_the_future_does_not_win_but_serves_where_it_is_the_only_one() {
    let (mut store, mut document) = (Store::default(), None);
    let future = store.add(at(4_000_000_000), true);
    document = Some(vec![future.clone()]).or(document);
    let decision = store.tick(&mut document, true, &policy(), QUIET, at(1000));
    assert_eq!(decision.signer, Ok(future.clone()));
    let now_key = store.add(at(1000), true);
    document.as_mut().unwrap().push(now_key.clone());
    let decision = store.tick(&mut document, true, &policy(), QUIET, at(1001));
    assert_eq!(decision.signer, Ok(now_key));
    assert_eq!(
        store.state(&future),
        Some(KeyState::Active),
        "and is not thrown away for it"
    );
}

#[test]
fn after_a_clock_set_back_a_new_key_still_takes_over() {
    let (mut store, mut document) = (Store::default(), None);
    let old = store.add(at(100_000), false);
    store.tick(&mut document, true, &policy(), QUIET, at(100_000));
    let new = store.add(at(1000), false);
    for now in [1000, 1359] {
        assert_eq!(
            store
                .tick(&mut document, true, &policy(), QUIET, at(now))
                .signer,
            Ok(old.clone())
        );
    }
    assert_eq!(
        store
            .tick(&mut document, true, &policy(), QUIET, at(1360))
            .signer,
        Ok(new.clone())
    );
    store.tick(&mut document, true, &policy(), QUIET, at(1361));
    // Nor after the clock is right again.
    assert_eq!(
        store
            .tick(&mut document, true, &policy(), QUIET, at(100_001))
            .signer,
        Ok(new)
    );
    assert!(
        document.unwrap().contains(&old),
        "its tokens may be valid until 101 800 and more"
    );
}

#[test]
fn d18_a_key_removed_elsewhere_stops_signing_and_is_not_published_again() {
    let (mut store, mut document) = (Store::default(), None);
    let kid = store.add(at(1000), false);
    store.tick(&mut document, true, &policy(), QUIET, at(1000));
    document = Some(vec![KeyId::generate("other", at(1)).unwrap()]);
    for now in [1001, 50_000] {
        let decision = store.tick(&mut document, true, &policy(), QUIET, at(now));
        assert_eq!(
            decision.signer,
            Err(NoSigner::Withdrawn { kid: kid.clone() })
        );
        assert_eq!(decision.actions, []);
    }
    // Housekeeping waits a day, and needs a document that is not empty.
    assert_eq!(
        store
            .tick(&mut document, true, &policy(), CLEAN, at(50_000))
            .actions,
        []
    );
    let mut emptied = Some(Vec::new());
    assert_eq!(
        store
            .tick(&mut emptied, true, &policy(), CLEAN, at(100_000))
            .actions,
        []
    );
    assert_eq!(
        store
            .tick(&mut None, true, &policy(), CLEAN, at(100_000))
            .actions,
        []
    );
    assert_eq!(
        store
            .tick(&mut document, false, &policy(), CLEAN, at(100_000))
            .actions,
        []
    );
    let decision = store.tick(&mut document, true, &policy(), CLEAN, at(100_000));
    assert_eq!(decision.actions, [Action::DeleteWithdrawn(kid)]);
}

#[test]
fn a_stale_read_stops_a_key_only_while_it_lasts() {
    let (mut store, mut document) = (Store::default(), None);
    let kid = store.add(at(1000), false);
    store.tick(&mut document, true, &policy(), QUIET, at(1000));
    let mut stale = Some(vec![]);
    assert!(
        store
            .tick(&mut stale, true, &policy(), QUIET, at(1010))
            .signer
            .is_err()
    );
    assert_eq!(
        store
            .tick(&mut document, true, &policy(), QUIET, at(1020))
            .signer,
        Ok(kid)
    );
}

#[test]
fn a_second_replica_waits_before_its_first_key_signs() {
    let mut document = None;
    let mut one = Store::default();
    one.add(at(1000), false);
    one.tick(&mut document, true, &policy(), QUIET, at(1000));
    let mut two = Store::default();
    let kid = two.add(at(2000), false);
    let decision = two.tick(&mut document, true, &policy(), QUIET, at(2000));
    assert_eq!(
        decision.signer,
        Err(NoSigner::Waiting {
            kid: kid.clone(),
            from: at(2360)
        })
    );
    let words = decision.signer.unwrap_err().to_string();
    for part in [
        "1970-01-01T00:39:20Z",
        "keys.cacheTime + keys.skew",
        "keys generate --local",
    ] {
        assert!(words.contains(part), "{words}");
    }
    assert_eq!(
        two.tick(&mut document, true, &policy(), QUIET, at(2360))
            .signer,
        Ok(kid)
    );
}

#[test]
fn an_old_directory_works_at_once_and_a_server_deletes_nothing_of_it() {
    let mut store = Store::default();
    let keys: Vec<_> = [1000, 2000, 3000]
        .map(|created| store.add(at(created), true))
        .into();
    let lost = store.add(at(4000), true);
    let mut document = Some(keys.clone());
    let unseen = store.tick(&mut document, false, &policy(), FIRST, at(4001));
    assert!(
        matches!(unseen.signer, Err(NoSigner::Unpublished { .. })),
        "nobody knows yet which of them are published"
    );
    for now in [4001, 5000, 100_000_000] {
        let decision = store.tick(&mut document, true, &policy(), FIRST, at(now));
        assert_eq!(
            decision.signer,
            Ok(keys[2].clone()),
            "the newest that is published, not {lost}"
        );
        assert_eq!(document.as_ref(), Some(&keys));
        assert!(store.records.iter().all(|record| record.has_private_file));
    }
    assert_eq!(store.state(&lost), Some(KeyState::Withdrawn));
    store.tick(&mut document, true, &policy(), CLEAN, at(100_000_001));
    assert_eq!(document, Some(vec![keys[2].clone()]));
}

#[test]
fn a_lost_document_is_put_back_without_what_had_left_it() {
    let (mut store, mut document) = (Store::default(), None);
    let first = store.add(at(1000), false);
    let second = store.add(at(1001), false);
    store.tick(&mut document, true, &policy(), QUIET, at(1001));
    document.as_mut().unwrap().retain(|kid| *kid != first);
    store.tick(&mut document, true, &policy(), QUIET, at(1002));
    document = None;
    let decision = store.tick(&mut document, true, &policy(), QUIET, at(1003));
    assert_eq!(decision.signer, Ok(second.clone()));
    assert_eq!(document, Some(vec![second]));
}

#[test]
fn an_outage_changes_nothing() {
    let (mut store, mut document) = (Store::default(), None);
    let first = store.add(at(1000), false);
    store.tick(&mut document, true, &policy(), QUIET, at(1000));
    store.add(at(2000), false);
    store.tick(&mut document, true, &policy(), QUIET, at(2000));
    let before = document.clone();
    for now in [3000, 30_000, 300_000] {
        let decision = store.tick(&mut document, false, &policy(), CLEAN, at(now));
        assert_eq!(decision.signer, Ok(first.clone()));
        assert!(
            decision
                .actions
                .iter()
                .all(|action| matches!(action, Action::Activate(_))),
            "{decision:?}"
        );
    }
    assert_eq!(document, before);
}

#[derive(Debug, Clone)]
enum Event {
    Advance(u16),
    SetBack(u16),
    Tick {
        store: usize,
        reachable: bool,
        clean: bool,
    },
    Generate(usize),
    Remove(usize),
    LoseDocument,
    Sign(usize),
    LongerTokens(bool),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let store = 0..2usize;
    let event = prop_oneof![
        4 => (0..2500u16).prop_map(Event::Advance),
        1 => (0..5000u16).prop_map(Event::SetBack),
        6 => (store.clone(), prop::bool::weighted(0.85), prop::bool::weighted(0.2))
            .prop_map(|(store, reachable, clean)| Event::Tick { store, reachable, clean }),
        1 => store.clone().prop_map(Event::Generate),
        1 => (0..6usize).prop_map(Event::Remove),
        1 => Just(Event::LoseDocument),
        4 => store.prop_map(Event::Sign),
        1 => any::<bool>().prop_map(Event::LongerTokens),
    ];
    prop::collection::vec(event, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 800, ..ProptestConfig::default() })]

    /// Two replicas with their own directories and one document; outages, lost documents, removals,
    /// clocks set back.
    #[test]
    fn every_valid_tokens_key_is_published_and_only_published_keys_sign(
        events in events(),
        rotate_every in prop::option::of(600..20_000u64),
    ) {
        let mut policy = KeyPolicy { rotate_every: rotate_every.map(Duration::from_secs), ..policy() };
        let mut now = at(1_740_000_000);
        let mut document: Option<Vec<KeyId>> = None;
        let mut stores = [Store::default(), Store::default()];
        // Key, expiry, and whether it has expired on any clock so far.
        let mut tokens: Vec<(KeyId, Timestamp)> = Vec::new();
        let mut removed: BTreeSet<KeyId> = BTreeSet::new();
        let mut lost: Option<Vec<KeyId>> = None;
        for event in events {
            match event {
                Event::Advance(seconds) => now += SignedDuration::from_secs(seconds.into()),
                Event::SetBack(seconds) => now -= SignedDuration::from_secs(seconds.into()),
                Event::Tick { store, reachable, clean } => {
                    let options = PassOptions { first_key: true, clean };
                    let before = stores[store].signer.clone();
                    let decision = stores[store].tick(&mut document, reachable, &policy, options, now);
                    if let Ok(kid) = &decision.signer {
                        let record = stores[store].records.iter().find(|record| record.kid == *kid).unwrap();
                        prop_assert!(record.can_sign && record.history.retired.is_none());
                        prop_assert!(record.history.at(PLACE).published.is_some());
                        prop_assert!(record.history.may_sign_until.is_some_and(|until| until >= now));
                        if reachable {
                            prop_assert!(document.as_ref().is_some_and(|document| document.contains(kid)));
                        }
                        // If the signer changes while the old one could go on, the new one has
                        // waited.
                        if let Some(before) = before.filter(|before| before != kid) {
                            let could = stores[store].records.iter().any(|record| {
                                record.kid == before && record.can_sign && state(record, PLACE) == KeyState::Active
                            });
                            let waited = signs_from(&record.history, PLACE, &policy).unwrap() <= now;
                            prop_assert!(waited || !could);
                        }
                    }
                    if let Some(document) = &document && reachable {
                        // If the restoring server had not seen a removal, restoring a lost document
                        // undoes it; nothing else does.
                        let undone = removed.iter().any(|kid| document.contains(kid));
                        prop_assert!(!undone || lost.is_some());
                        removed.retain(|kid| !document.contains(kid));
                        // A server that had never read the document cannot restore the keys of
                        // others.
                        removed.extend(lost.take().into_iter().flatten().filter(|kid| !document.contains(kid)));
                    }
                }
                Event::Generate(store) => {
                    stores[store].add(now, false);
                }
                Event::Remove(n) => {
                    if let Some(document) = &mut document && n < document.len() {
                        removed.insert(document.remove(n));
                    }
                }
                Event::LoseDocument => {
                    if let Some(document) = document.take() {
                        lost = Some(document);
                    }
                }
                Event::Sign(store) => {
                    // Between two ticks the server goes on with its signer, until the lease ends.
                    if let Some(kid) = &stores[store].signer {
                        let until = stores[store].records.iter().find(|record| record.kid == *kid)
                            .and_then(|record| record.history.may_sign_until);
                        if until.is_some_and(|until| now <= until) {
                            tokens.push((kid.clone(), later(now, policy.token_life)));
                        }
                    }
                }
                Event::LongerTokens(long) => {
                    policy.token_life = Duration::from_secs(if long { 7200 } else { 1200 });
                    // A changed setting comes with a restart: there is no signer until the next
                    // tick.
                    for store in &mut stores {
                        store.signer = None;
                    }
                }
            }
            tokens.retain(|(_, end)| *end > now);
            for (kid, end) in &tokens {
                let published = document.as_ref().is_some_and(|document| document.contains(kid));
                prop_assert!(
                    published || removed.contains(kid) || lost.is_some(),
                    "{kid} is needed until {end}, now {now}: {document:?}"
                );
            }
            let mut kids: Vec<_> = document.iter().flatten().collect();
            kids.sort();
            kids.dedup();
            prop_assert_eq!(kids.len(), document.as_ref().map_or(0, Vec::len), "no id twice");
        }
    }
}
