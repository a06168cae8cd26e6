//! The core of the agent: brings the tables to what the cluster says, and starts over when a write fails.
//!
//! In: [`Change`]s and [`ThisNode`]. Out: writes to a [`MapStore`] and [`Report`]s. Knows no clock and waits for nothing:
//! the caller decides when to converge, how long to back off after an error, and when there is time to tidy.
//!
//! ```text
//! apply, set_node  -> something is pending
//! converge         -> plan what is dirty, make room for it, write it; on an error the tables are read again and
//!                     everything is planned; where no room can be made, for the tables as they are
//! tidy (when idle, -> free what converge took out of use; who did not fit is tried again
//!  or it is much)
//! ```

use std::collections::BTreeMap;

use proxy_common::index;
use proxy_common::tables::Capacity;

use crate::desired::{self, Claim, ServicePortName, ThisNode};
use crate::maps::{ApplyError, GrowError, MapError, MapStore};
use crate::model::{self, Change, Dirty, Model, ObjectName, Refused};
use crate::plan::{self, Dialled, Full, Ledger, Op, Planned, growth};

pub struct Converger<S> {
    model: Model,
    this: ThisNode,
    store: S,
    /// The mirror of the tables. None when they have to be read: then all that the cluster says is planned.
    ledger: Option<Ledger>,
    /// The tables could not grow: until [`Self::try_to_grow`] what they hold is all there is.
    cramped: bool,
    /// Why, until a report tells it.
    growth_error: Option<GrowError>,
    /// What was found about externalIPs.
    claims: Claims,
}

/// externalIPs that are somebody else's, by the Service that has them.
#[derive(Default)]
struct Claims {
    known: BTreeMap<ObjectName, Vec<Claim>>,
    /// Not told yet.
    news: Vec<Claim>,
}

impl Claims {
    fn look(&mut self, model: &Model, this: &ThisNode, dirty: &Dirty) {
        let found = |name| model.service(name).map_or_else(Vec::new, |service| desired::claims(model, this, service));
        if dirty.everything {
            let gone: Vec<_> = self.known.keys().filter(|name| model.service(name).is_none()).cloned().collect();
            for name in gone.iter().chain(model.services().map(|service| &service.name)) {
                self.learn(name, found(name));
            }
        } else {
            for name in &dirty.services {
                self.learn(name, found(name));
            }
        }
    }

    fn learn(&mut self, name: &ObjectName, now: Vec<Claim>) {
        let known = self.known.remove(name).unwrap_or_default();
        self.news.extend(now.iter().filter(|claim| !known.contains(claim)).cloned());
        if !now.is_empty() {
            self.known.insert(name.clone(), now);
        }
    }
}

/// What one step did.
#[derive(Debug, Default)]
pub struct Report {
    /// False until every kind that counts was listed: nothing is written on a partial view.
    pub synced: bool,
    pub writes: usize,
    /// All was planned anew, all that is published was read, or tables grew, for which programs are loaded: that took memory
    /// which nobody needs any more.
    pub whole: bool,
    /// Service ports that do not fit. They are tried again when space returns.
    pub full: Vec<(ServicePortName, Full)>,
    /// Some addresses do not fit.
    pub addresses_full: Option<Full>,
    /// Why the tables stay as small as they are; told once for every try to make them larger.
    pub cramped: Option<GrowError>,
    /// externalIPs that are somebody else's, each told once.
    pub claims: Vec<Claim>,
    /// Addresses that nobody may name, each told once.
    pub refused: Vec<Refused>,
    /// What was wrong in the tables when they were read.
    pub damage: Vec<plan::Problem>,
}

impl Report {
    /// `next` happened after this: it knows better what fits.
    fn add(&mut self, next: Self) {
        self.writes += next.writes;
        self.whole |= next.whole;
        self.full = next.full;
        self.addresses_full = next.addresses_full.or(self.addresses_full.take());
        self.cramped = next.cramped.or(self.cramped.take());
        self.claims.extend(next.claims);
        self.refused.extend(next.refused);
        self.damage.extend(next.damage);
    }
}

/// Converging stopped half way. The tables serve; converge again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Read(#[from] MapError),
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

impl<S: MapStore> Converger<S> {
    pub fn new(store: S, this: ThisNode) -> Self {
        Self::knowing(Model::default(), store, this)
    }

    /// Goes on from what was learned before there was a store.
    pub fn knowing(model: Model, store: S, this: ThisNode) -> Self {
        Self { model, this, store, ledger: None, cramped: false, growth_error: None, claims: Claims::default() }
    }

    /// Takes in what a source learned. The problems are those that are new with it.
    pub fn apply(&mut self, change: Change) -> Vec<model::Problem> {
        self.model.apply(change)
    }

    /// Takes in what changed about this host.
    pub fn set_node(&mut self, this: ThisNode) {
        if self.this != this {
            self.this = this;
            self.model.mark_everything();
        }
    }

    pub fn node(&self) -> &ThisNode {
        &self.this
    }

    pub fn model(&self) -> &Model {
        &self.model
    }

    pub fn model_mut(&mut self) -> &mut Model {
        &mut self.model
    }

    pub fn store(&self) -> &S {
        &self.store
    }

    pub fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }

    /// The mirror of the tables; none before the first step and after an error.
    pub fn ledger(&self) -> Option<&Ledger> {
        self.ledger.as_ref()
    }

    /// Brings the tables to what is known now. Does nothing before the model is synced.
    pub fn converge(&mut self) -> Result<Report, Error> {
        let mut report = self.step()?;
        // What is missing may just have gone out of use.
        let is_full = !report.full.is_empty() || report.addresses_full.is_some();
        if is_full && self.is_untidy() || self.wastes_slots() {
            report.add(self.tidy()?);
        }
        Ok(report)
    }

    fn wastes_slots(&self) -> bool {
        self.ledger().is_some_and(|ledger| ledger.wastes_slots(&self.store.capacity()))
    }

    fn step(&mut self) -> Result<Report, Error> {
        let mut report = Report { synced: self.model.synced(), ..Report::default() };
        if !report.synced {
            return Ok(report);
        }
        let (mut ledger, first) = self.take_ledger(&mut report)?;
        let Some(ops) = self.plan(&mut ledger, first, &mut report)? else {
            self.model.mark_everything();
            return self.step();
        };
        if let Some(sizes) = self.outgrown(&ledger) {
            let buckets = index::buckets(self.store.capacity().frontends);
            if let Err(error) = self.store.grow(&sizes) {
                return self.make_do(error);
            }
            report.whole = true;
            // Where words of INDEX go depends on how many buckets there are.
            if index::buckets(self.store.capacity().frontends) != buckets {
                return Ok(Report { whole: true, ..self.step()? });
            }
        }
        self.write(ledger, &ops, &mut report)?;
        report.cramped = self.growth_error.take();
        report.claims = std::mem::take(&mut self.claims.news);
        report.refused = self.model.take_refused();
        Ok(report)
    }

    /// The sizes that the tables need for what was planned, unless they have them.
    fn outgrown(&self, ledger: &Ledger) -> Option<Capacity> {
        let (now, limit) = (self.store.capacity(), self.limit());
        growth::sizes(&ledger.required(), &now, &limit)
    }

    fn limit(&self) -> Capacity {
        if self.cramped { self.store.capacity() } else { self.store.limit() }
    }

    /// Plans once more, for the tables as they are: only what does not fit is not served.
    fn make_do(&mut self, error: GrowError) -> Result<Report, Error> {
        self.cramped = true;
        self.growth_error = Some(error);
        self.step()
    }

    /// True while the tables are smaller than they should be.
    pub fn is_cramped(&self) -> bool {
        self.cramped
    }

    /// After a growth that failed: the next step tries again.
    pub fn try_to_grow(&mut self) {
        if std::mem::take(&mut self.cramped) {
            self.ledger = None;
        }
    }

    /// True when [`Self::tidy`] has something to do.
    pub fn is_untidy(&self) -> bool {
        self.ledger().is_some_and(Ledger::has_retired)
    }

    /// Frees what is no longer in use, and tries those again that did not fit.
    pub fn tidy(&mut self) -> Result<Report, Error> {
        let mut report = Report { synced: self.model.synced(), ..Report::default() };
        if !self.is_untidy() {
            return Ok(report);
        }
        let (mut ledger, _) = self.take_ledger(&mut report)?;
        report.whole = ledger.read_to_collect(&self.store)?;
        let ops = ledger.collect();
        let unserved: Vec<ObjectName> = ledger.full().keys().map(|port| port.service.clone()).collect();
        let lacks_addresses = ledger.lacks_addresses();
        self.write(ledger, &ops, &mut report)?;
        if lacks_addresses {
            self.model.mark_everything();
        }
        if lacks_addresses || !unserved.is_empty() {
            self.model.mark_services(unserved);
            report.add(self.step()?);
        }
        Ok(report)
    }

    /// Takes in what flows of packets dial: of what nobody serves and nobody dials, packets need not be looked at. Before the
    /// first step and after an error it is nothing: there will be another look.
    pub fn heed_flows(&mut self, dialled: &Dialled) -> Result<(), Error> {
        let Some(mut ledger) = self.ledger.take() else { return Ok(()) };
        let ops = ledger.heed_flows(dialled, &self.store)?;
        self.write(ledger, &ops, &mut Report::default())?;
        Ok(())
    }

    /// The ledger, and whether it is a new one. It is only given back when every write succeeded.
    fn take_ledger(&mut self, report: &mut Report) -> Result<(Ledger, bool), MapError> {
        if let Some(ledger) = self.ledger.take() {
            return Ok((ledger, false));
        }
        let (ledger, damage) = Ledger::restore(&self.store.read()?, self.limit());
        report.damage = damage;
        Ok((ledger, true))
    }

    /// `None` when room is short: who gets it is decided over everything, from the beginning.
    fn plan(&mut self, ledger: &mut Ledger, first: bool, report: &mut Report) -> Result<Option<Vec<Op>>, MapError> {
        if first {
            self.model.mark_everything();
        }
        let dirty = self.model.take_dirty();
        self.claims.look(&self.model, &self.this, &dirty);
        let wanted = desired::services(&self.model, &self.this, &dirty);
        let wanted = || wanted.iter().map(|(name, wanted)| (name, wanted.as_ref()));
        let whole = dirty.node || dirty.everything;
        report.whole |= whole;
        let changed = desired::some_addresses(&self.model, &self.this, dirty.addresses.iter().copied());
        if whole {
            ledger.read_all(&self.store)?;
        } else {
            ledger.read_for(wanted(), changed.iter().map(|(addr, _)| *addr), &self.store)?;
        }
        let Planned { mut ops, full } = ledger.plan_all(wanted());
        report.full = full;
        if whole {
            let (node_ops, full) = ledger.plan_node(&desired::node(&self.model, &self.this));
            ops.extend(node_ops);
            report.addresses_full = full;
        } else {
            let Some(address_ops) = ledger.plan_addresses(&changed) else { return Ok(None) };
            ops.extend(address_ops);
        }
        if first {
            ops.extend(ledger.plan_orphans());
        }
        Ok(Some(ops))
    }

    fn write(&mut self, mut ledger: Ledger, ops: &[Op], report: &mut Report) -> Result<(), ApplyError> {
        self.store.apply(ops)?;
        ledger.rest();
        self.ledger = Some(ledger);
        report.writes += ops.iter().filter(|op| **op != Op::Grace).count();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use proxy_common::abi::Frontend;
    use proxy_common::index::{WORDS, Word};

    use super::*;
    use crate::facts::facts;
    use crate::maps::Snapshot;
    use crate::maps::memory::{Failures, MemoryStore, Seed};
    use crate::model::Event;
    use crate::model::build::{Slice, node, service, service_cidr, slice};
    use crate::plan::UNUSED_FRONTEND;

    const CAPACITY: Capacity = Capacity { slots: 4096, ..Capacity::DEFAULT };

    fn this() -> ThisNode {
        ThisNode { name: "node-1".into(), own_addresses: vec!["192.0.2.1".parse().unwrap()], ..ThisNode::default() }
    }

    fn on(store: MemoryStore) -> Converger<MemoryStore> {
        Converger::new(store, this())
    }

    fn synced(converger: &mut Converger<MemoryStore>) {
        converger.apply(Change::Service(Event::Reset(Vec::new())));
        converger.apply(Change::EndpointSlice(Event::Reset(Vec::new())));
    }

    /// Every version of every object, oldest first; the last one stays.
    fn histories() -> Vec<Vec<Change>> {
        let web = || service("shop/web").cluster_ip("10.96.0.10").port(80).created("2026-01-02T00:00:00Z");
        let api = || service("shop/api").cluster_ip("10.96.0.11").port(80).created("2026-01-01T00:00:00Z");
        let ends = |ips: &[&str]| -> Slice {
            ips.iter().fold(slice("shop/web").port(8080), |slice, ip| slice.endpoint(ip).on("node-1"))
        };
        vec![
            vec![web().apply(), web().delete(), web().external_ip("203.0.113.9").node_port(30_080).apply()],
            vec![api().external_ip("203.0.113.9").apply(), api().apply(), api().external_ip("203.0.113.9").apply()],
            vec![ends(&["10.244.1.5"]).apply(), ends(&[]).apply(), ends(&["10.244.1.5", "10.244.1.6"]).apply()],
            vec![slice("shop/api").port(80).endpoint("10.244.1.9").not_ready().apply()],
            vec![node("node-1").apply(), node("node-1").zone("a").internal_ip("192.0.2.1").apply()],
            vec![service_cidr("kubernetes").cidr("10.96.0.0/16").apply()],
        ]
    }

    /// Merges the histories: each pick takes the next version of one object, or tells its last one again.
    fn merged(picks: &[(usize, bool)]) -> Vec<Change> {
        let histories = histories();
        let mut told = vec![0_usize; histories.len()];
        let mut changes = Vec::new();
        for &(object, again) in picks {
            let (history, next) = (&histories[object], &mut told[object]);
            let version = if again { next.checked_sub(1) } else { (*next < history.len()).then_some(*next) };
            changes.extend(version.map(|version| history[version].clone()));
            *next += usize::from(!again && *next < history.len());
        }
        let rest = histories.into_iter().zip(told).flat_map(|(history, told)| history.into_iter().skip(told));
        changes.extend(rest);
        changes
    }

    fn settle(converger: &mut Converger<MemoryStore>) -> Vec<String> {
        assert!(converger.model().synced());
        while converger.converge().is_err() {}
        facts(&converger.store().snapshot())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_order_and_repetition_of_events_gives_the_same_tables(
            picks in prop::collection::vec((0_usize..6, any::<bool>()), 0..40),
            seed in 1_u64..,
        ) {
            let mut straight = on(MemoryStore::growing(CAPACITY));
            synced(&mut straight);
            for change in histories().into_iter().flatten() {
                straight.apply(change);
            }
            let failures = Failures::Percent { seed: Seed(seed), percent: 10 };
            let mut crooked = on(MemoryStore::growing(CAPACITY).failing(failures));
            synced(&mut crooked);
            for (number, change) in merged(&picks).into_iter().enumerate() {
                crooked.apply(change);
                if number % 2 == 0 {
                    let _ = crooked.converge();
                    let _ = crooked.tidy();
                }
            }
            prop_assert_eq!(settle(&mut crooked), settle(&mut straight));
        }

        /// A plan for a few keys reads few entries, and any of them may be wrong by then.
        #[test]
        fn damage_done_while_an_agent_lives_ends_with_the_next_one(
            damages in prop::collection::vec((0..6_u8, any::<usize>(), any::<u64>(), 0..60_u32), 1..30),
        ) {
            const SERVICES: u32 = 60;
            let mut converger = on(MemoryStore::growing(CAPACITY));
            synced(&mut converger);
            (0..SERVICES).flat_map(one_of_many).for_each(|change| drop(converger.apply(change)));
            let right = settle(&mut converger);
            for (how, place, with, number) in damages {
                damage(converger.store_mut(), how, place, with);
                let name = format!("shop/number-{number}");
                let gone = service(&name).cluster_ip("10.96.0.1").delete();
                let [back, one] = one_of_many(number);
                let other = slice(&name).port(80).endpoint(&format!("10.245.0.{number}")).apply();
                for change in [other, gone, back, one] {
                    converger.apply(change);
                    // An error is an answer, and the step after it reads all there is.
                    let _ = converger.converge();
                    let _ = converger.tidy();
                }
            }
            let mut next = on(converger.store().clone().reopened(CAPACITY));
            synced(&mut next);
            (0..SERVICES).flat_map(one_of_many).for_each(|change| drop(next.apply(change)));
            prop_assert_eq!(settle(&mut next), right);
        }
    }

    /// What is at one place in INDEX or FRONTEND becomes something else.
    fn damage(store: &mut MemoryStore, how: u8, place: usize, with: u64) {
        let used: Vec<usize> =
            (0..store.index.len() * WORDS).filter(|at| store.index.as_flattened()[*at] != 0).collect();
        let [Some(at), Some(other)] = [place, with as usize].map(|n| used.get(n % used.len().max(1)).copied()) else {
            return;
        };
        let words = store.index.as_flattened_mut();
        match how {
            0 => words[at] = 0,
            1 => words[at] = with,
            2 => words[at] = words[other],
            3 => words.swap(at, other),
            _ => {
                let [at, other] = [at, other].map(|at| Word::of(words[at]).id);
                let entry = store.frontend.get(&other).copied().unwrap_or(UNUSED_FRONTEND);
                let [service, kind] =
                    if how == 4 { [entry.service, entry.kind] } else { [with as u32, with as u32 % 8] };
                store.frontend.insert(at, Frontend { service, kind, ..entry });
            }
        }
    }

    #[test]
    fn nothing_is_written_before_everything_is_listed() {
        let mut converger = on(MemoryStore::growing(CAPACITY));
        converger.apply(service("shop/web").cluster_ip("10.96.0.10").port(80).apply());
        let report = converger.converge().unwrap();
        assert_eq!((report.synced, report.writes, converger.store().writes()), (false, 0, 0));
    }

    /// Service number `number` and its only endpoint.
    fn one_of_many(number: u32) -> [Change; 2] {
        let [_, _, high, low] = number.to_be_bytes();
        let name = format!("shop/number-{number}");
        let service = service(&name).cluster_ip(&format!("10.96.{high}.{low}")).port(80);
        [service.apply(), slice(&name).port(80).endpoint(&format!("10.244.{high}.{low}")).apply()]
    }

    #[test]
    fn tables_grow_once_for_all_that_is_listed() {
        let mut converger = on(MemoryStore::growing(Capacity::LIMIT));
        synced(&mut converger);
        (0..2000).flat_map(one_of_many).for_each(|change| drop(converger.apply(change)));
        converger.converge().unwrap();
        assert_eq!((converger.store().growths(), converger.store().capacity().services), (1, 2001 + 256));
    }

    #[test]
    fn tables_do_not_grow_for_changes_of_a_large_service_that_never_pause() {
        let mut converger = on(MemoryStore::growing(Capacity::LIMIT));
        synced(&mut converger);
        converger.apply(service("shop/web").cluster_ip("10.96.0.1").port(80).apply());
        for changed in 0..200 {
            let address = |at: u32| format!("10.{}.{}.{}", 8 + u32::from(at < changed), at / 256, at % 256);
            let endpoints = (0..1000).fold(slice("shop/web").port(80), |slice, at| slice.endpoint(&address(at)));
            converger.apply(endpoints.apply());
            converger.converge().unwrap();
        }
        let store = converger.store();
        assert!(store.growths() <= 3, "{} times", store.growths());
        assert!(store.capacity().slots <= 8 * 1000, "{} slots for 1,000 endpoints", store.capacity().slots);
    }

    #[test]
    fn tables_grow_with_the_cluster_and_what_they_hold_keeps_its_place() {
        let mut converger = on(MemoryStore::growing(Capacity::LIMIT));
        synced(&mut converger);
        let mut before = Snapshot::default();
        for number in 0..1000 {
            for change in one_of_many(number) {
                converger.apply(change);
            }
            let growths = converger.store().growths();
            let report = converger.converge().unwrap();
            assert_eq!((report.full, report.cramped.is_none()), (Vec::new(), true));
            assert!(report.whole || converger.store().growths() == growths, "memory is given back after a growth");
            let now = converger.store().snapshot();
            assert!(before.service.iter().zip(&now.service).all(|(before, now)| before == now));
            assert!(before.backends.iter().zip(&now.backends).all(|(before, now)| before == now));
            before = now;
        }
        assert_eq!(converger.store().growths(), 3, "a step is at least 256 service ports");
        let mut fixed = on(MemoryStore::new(Capacity::DEFAULT));
        synced(&mut fixed);
        (0..1000).flat_map(one_of_many).for_each(|change| drop(fixed.apply(change)));
        assert_eq!(settle(&mut converger), settle(&mut fixed));
    }

    #[test]
    fn where_tables_cannot_grow_only_what_is_new_waits() {
        let mut converger = on(MemoryStore::growing(Capacity::LIMIT));
        synced(&mut converger);
        let count = 256 / 2;
        (0..count).flat_map(one_of_many).for_each(|change| drop(converger.apply(change)));
        converger.converge().unwrap();
        let served = settle(&mut converger);
        let room = converger.store().capacity().services - 1;
        (0..=room).flat_map(one_of_many).for_each(|change| drop(converger.apply(change)));

        converger.store_mut().fail_next();
        let report = converger.converge().unwrap();
        assert_eq!(report.cramped.unwrap().to_string(), "failed on purpose");
        assert_eq!(report.full.len(), 1, "one service port more than there is room for");
        let now = facts(&converger.store().snapshot());
        assert!(served.iter().all(|fact| now.contains(fact)));
        assert!(converger.is_cramped());

        converger.try_to_grow();
        let report = converger.converge().unwrap();
        assert_eq!((report.full, report.cramped.is_none()), (Vec::new(), true));
    }

    #[test]
    fn a_growth_that_failed_is_told_although_writes_failed_too() {
        let mut converger = on(MemoryStore::growing(Capacity::LIMIT));
        synced(&mut converger);
        converger.converge().unwrap();
        let room = converger.store().capacity().services - 1;
        (0..=room).flat_map(one_of_many).for_each(|change| drop(converger.apply(change)));

        let all = Failures::Percent { seed: Seed(1), percent: 100 };
        *converger.store_mut() = converger.store().clone().failing(all);
        converger.converge().unwrap_err();
        *converger.store_mut() = converger.store().clone().failing(Failures::Never);
        let report = converger.converge().unwrap();
        assert_eq!(report.cramped.map(|error| error.to_string()), Some("failed on purpose".to_owned()));
        assert!(converger.is_cramped());
        assert!(converger.converge().unwrap().cramped.is_none(), "it is told once");
    }

    #[test]
    fn who_did_not_fit_is_served_when_space_returns() {
        let capacity = Capacity { services: 2, ..CAPACITY };
        let mut converger = on(MemoryStore::growing(capacity));
        synced(&mut converger);
        converger.apply(service("shop/first").cluster_ip("10.96.0.10").port(80).apply());
        converger.converge().unwrap();
        converger.apply(service("shop/second").cluster_ip("10.96.0.11").port(80).apply());
        let report = converger.converge().unwrap();
        assert_eq!(report.full.iter().map(|(name, _)| name.service.name()).collect::<Vec<_>>(), ["second"]);
        converger.apply(service("shop/first").delete());
        converger.converge().unwrap();
        assert_eq!(converger.tidy().unwrap().full, []);
        let served = facts(&converger.store().snapshot());
        assert!(served.iter().any(|fact| fact == "TCP 10.96.0.11:80 ClusterIP random -> refused"), "{served:#?}");
    }

    #[test]
    fn what_goes_out_of_use_makes_room_in_the_same_step() {
        let capacity = Capacity { services: 2, ..CAPACITY };
        let mut converger = on(MemoryStore::growing(capacity));
        synced(&mut converger);
        converger.apply(service("shop/old").cluster_ip("10.96.0.10").port(80).apply());
        converger.converge().unwrap();
        converger.apply(service("shop/old").delete());
        converger.apply(service("shop/new").cluster_ip("10.96.0.11").port(80).apply());
        assert_eq!(converger.converge().unwrap().full, []);
    }

    #[test]
    fn a_full_table_after_a_restart_takes_nothing_from_what_served() {
        let capacity = Capacity { backends: 3, ..CAPACITY };
        let web = service("shop/web").cluster_ip("10.96.0.10").port(80);
        let mut converger = on(MemoryStore::growing(capacity));
        synced(&mut converger);
        converger.apply(web.apply());
        converger.apply(slice("shop/web").port(80).endpoint("10.244.1.1").endpoint("10.244.1.2").apply());
        let before = settle(&mut converger);
        assert!(before.iter().any(|fact| fact.contains("-> 10.244.1.1:80 cluster,serving")), "{before:#?}");

        let mut restarted = on(converger.store().clone().reopened(capacity));
        synced(&mut restarted);
        restarted.apply(web.apply());
        restarted.apply(slice("shop/web").port(80).endpoint("10.244.1.3").endpoint("10.244.1.4").apply());
        assert_eq!(settle(&mut restarted), before);
    }
}
