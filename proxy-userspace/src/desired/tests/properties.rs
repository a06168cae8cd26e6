//! Any order, duplication or coalescing of events ends in the same tables.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::desired::{ServicePortName, WantedNode, node, some_addresses};
use crate::model::Event;
use crate::model::build::{Node, ServiceCidr};

/// What the agent would have in the kernel.
#[derive(Debug, Default, PartialEq)]
struct Tables {
    services: BTreeMap<ServicePortName, WantedService>,
    node: Option<WantedNode>,
}

impl Tables {
    /// Takes over what is dirty, and only that.
    fn follow(&mut self, model: &mut Model) {
        let dirty = model.take_dirty();
        for (name, wanted) in services(model, &this(), &dirty) {
            match wanted {
                Some(wanted) => drop(self.services.insert(name, wanted)),
                None => drop(self.services.remove(&name)),
            }
        }
        match &mut self.node {
            Some(known) if !dirty.node && !dirty.everything => {
                let mut addresses: BTreeMap<_, _> = known.addresses.iter().copied().collect();
                for (addr, flags) in some_addresses(model, &this(), dirty.addresses) {
                    addresses.remove(&addr);
                    addresses.extend(flags.map(|flags| (addr, flags)));
                }
                known.addresses = addresses.into_iter().collect();
            }
            node_tables => *node_tables = Some(node(model, &this())),
        }
    }

    /// From nothing, all at once.
    fn fresh(model: &Model) -> Self {
        let everything = crate::model::Dirty { everything: true, ..Default::default() };
        let wanted = services(model, &this(), &everything);
        let services = wanted.into_iter().filter_map(|(name, wanted)| Some((name, wanted?))).collect();
        Self { services, node: Some(node(model, &this())) }
    }
}

/// An object that comes in several states, one of them "gone".
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "a test's few objects")]
enum Object {
    Service(Service),
    Slice(Slice),
    Node(Node),
    Cidr(ServiceCidr),
}

impl Object {
    fn apply(&self) -> Change {
        match self {
            Self::Service(object) => object.apply(),
            Self::Slice(object) => object.apply(),
            Self::Node(object) => object.apply(),
            Self::Cidr(object) => object.apply(),
        }
    }

    fn delete(&self) -> Option<Change> {
        match self {
            Self::Service(object) => Some(object.delete()),
            Self::Slice(object) => Some(object.delete()),
            Self::Node(_) => None, // a Node that went stays in force (A4), so its history does count
            Self::Cidr(object) => Some(object.delete()),
        }
    }

    /// Two objects with one key are two states of one object.
    fn key(&self) -> String {
        match self {
            Self::Service(object) => format!("service {}/{}", object.0.metadata.namespace, object.0.metadata.name),
            Self::Slice(object) => format!("slice {}/{}", object.0.metadata.namespace, object.0.metadata.name),
            Self::Node(object) => format!("node {}", object.0.metadata.name),
            Self::Cidr(object) => format!("cidr {}", object.0.metadata.name),
        }
    }
}

/// Few names and addresses, so that Services collide, slices move between Services and endpoints repeat.
fn service() -> impl Strategy<Value = Service> {
    let name = select(vec!["a/web", "a/api", "b/web"]);
    let port = select(vec!["http", "metrics", ""]);
    let cluster_ip = select(vec!["10.96.0.1", "10.96.0.2", "fd00:96::1", "None"]);
    let created = select(vec![None, Some("2026-01-01T00:00:00Z"), Some("2026-02-01T00:00:00Z")]);
    (name, cluster_ip, port, created, any::<[bool; 6]>()).prop_map(|(name, ip, port, created, has)| {
        let mut service = build::service(name).cluster_ip(ip).named_port(port, "TCP", 80);
        if let Some(created) = created {
            service = service.created(created);
        }
        let choices: [fn(Service) -> Service; 6] = [
            |service| service.node_port(30080),
            |service| service.external_ip("203.0.113.1"),
            |service| service.load_balancer_ip("203.0.113.2").source_range("192.0.2.0/24"),
            Service::internal_local,
            Service::external_local,
            |service| service.named_port("dns", "UDP", 53),
        ];
        has.into_iter().zip(choices).filter(|(has, _)| *has).fold(service, |service, (_, choose)| choose(service))
    })
}

fn slice() -> impl Strategy<Value = Slice> {
    let endpoint =
        (0..4_u8, 0..4_u8, select(vec![HERE, ELSEWHERE]), select(vec![None, Some("zone-a"), Some("zone-b")]));
    let owner = select(vec!["a/web", "a/api", "b/web"]);
    let name = select(vec!["one", "two"]);
    let port = select(vec!["http", "metrics", ""]);
    (owner, name, port, prop::collection::vec(endpoint, 0..4)).prop_map(|(owner, name, port, endpoints)| {
        let slice = build::slice(owner).named(name).named_port(port, "TCP", 8080).named_port("dns", "UDP", 53);
        endpoints.into_iter().fold(slice, |slice, (address, state, node, zone)| {
            let slice = slice.endpoint(&format!("10.1.0.{}", address + 1)).on(node);
            let slice = [
                |slice| slice,
                Slice::not_ready,
                Slice::terminating,
                |slice: Slice| slice.conditions(true, true, true),
            ][usize::from(state)](slice);
            zone.into_iter().fold(slice, Slice::for_zone)
        })
    })
}

fn object() -> impl Strategy<Value = Object> {
    let zone = select(vec!["zone-a", "zone-b"]);
    let node_ip = select(vec!["192.0.2.1", "198.51.100.1"]);
    let cidr = select(vec!["10.96.0.0/16", "10.97.0.0/16"]);
    prop_oneof![
        5 => service().prop_map(Object::Service),
        5 => slice().prop_map(Object::Slice),
        1 => (zone, node_ip).prop_map(|(zone, ip)| Object::Node(build::node(HERE).zone(zone).internal_ip(ip))),
        1 => cidr.prop_map(|cidr| Object::Cidr(build::service_cidr("kubernetes").cidr(cidr))),
    ]
}

/// Objects, each with whether it is gone.
type History = Vec<(Object, bool)>;

/// The objects of a history, each in its last state, in two orders.
fn shuffled() -> impl Strategy<Value = (History, History)> {
    let objects = history().prop_map(|history| final_state(&history));
    objects.prop_flat_map(|objects| (Just(objects.clone()), Just(objects).prop_shuffle()))
}

/// A history: each event applies a state or deletes the object of that name.
fn history() -> impl Strategy<Value = History> {
    prop::collection::vec((object(), prop::bool::weighted(0.2)), 1..40)
}

fn change((object, gone): &(Object, bool)) -> Change {
    let gone = gone.then(|| object.delete()).flatten();
    gone.unwrap_or_else(|| object.apply())
}

/// A model that saw all of `history`.
fn told<'a>(history: impl IntoIterator<Item = &'a (Object, bool)>) -> Model {
    let mut model = Model::default();
    tell(&mut model, history.into_iter().map(change));
    model
}

fn tell(model: &mut Model, changes: impl IntoIterator<Item = Change>) {
    for change in changes {
        model.apply(change);
    }
}

/// The last state of each object: what a fresh list would tell.
fn final_state(history: &[(Object, bool)]) -> History {
    let mut last: BTreeMap<String, (Object, bool)> = BTreeMap::new();
    for event in history {
        last.insert(event.0.key(), event.clone());
    }
    last.into_values().collect()
}

proptest! {
    // A failure prints its input; a file beside the sources would be left behind.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn following_every_event_ends_where_a_fresh_start_ends(history in history(), pauses in any::<u64>()) {
        let (mut model, mut tables) = (Model::default(), Tables::default());
        for (at, event) in history.iter().enumerate() {
            model.apply(change(event));
            if pauses >> (at % 64) & 1 == 1 {
                tables.follow(&mut model);
                prop_assert_eq!(&tables, &Tables::fresh(&model));
            }
        }
        tables.follow(&mut model);
        prop_assert_eq!(&tables, &Tables::fresh(&model));
        prop_assert_eq!(tables, Tables::fresh(&told(&final_state(&history))));
    }

    #[test]
    fn order_and_repetition_of_objects_do_not_matter((history, shuffled) in shuffled(), repeat in any::<u64>()) {
        let repeated = shuffled.iter().enumerate().flat_map(|(at, event)| vec![event; 1 + (repeat >> (at % 64) & 1) as usize]);
        prop_assert_eq!(Tables::fresh(&told(&history)), Tables::fresh(&told(repeated)));
    }

    #[test]
    fn a_complete_list_forgets_what_is_not_in_it(
        history in history(),
        list in prop::collection::vec(service(), 0..4),
        in_pieces: bool,
    ) {
        let mut model = told(&history);
        let mut tables = Tables::default();
        tables.follow(&mut model);
        if in_pieces {
            let pieces = list.iter().map(Service::apply);
            let begin = std::iter::once(Change::Service(Event::Begin));
            tell(&mut model, begin.chain(pieces).chain([Change::Service(Event::End)]));
        } else {
            model.apply(Service::reset(&list));
        }
        tables.follow(&mut model);
        prop_assert_eq!(&tables, &Tables::fresh(&model));

        let mut others = final_state(&history);
        others.retain(|(object, _)| !matches!(object, Object::Service(_)));
        let mut fresh = told(&others);
        tell(&mut fresh, list.iter().map(Service::apply));
        prop_assert_eq!(tables, Tables::fresh(&fresh));
    }

    #[test]
    fn each_frontend_belongs_to_one_service_port(history in history()) {
        let tables = Tables::fresh(&told(&history));
        let frontends = tables.services.values().flat_map(|wanted| &wanted.frontends);
        let mut keys: Vec<_> = frontends.map(|frontend| frontend.key).collect();
        let all = keys.len();
        keys.sort();
        keys.dedup();
        prop_assert_eq!(keys.len(), all);
    }
}
