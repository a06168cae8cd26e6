//! JSON of an API server to own types. A field of the wrong type costs only its object: what cannot be read as a whole
//! is read once more, object by object.

use std::borrow::Cow;

use kube::core::Status;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::Kind;
use crate::model::objects::Metadata;

/// One object of a list or a watch.
pub(super) type Object<K> = Result<K, Box<Unreadable>>;

/// An object that is not what its kind should be.
#[derive(Clone, Debug)]
pub(super) struct Unreadable {
    pub(super) metadata: Metadata,
    pub(super) why: String,
}

/// One line of a watch.
#[derive(Debug)]
pub(super) enum WatchEvent<K> {
    /// Added or modified.
    Put(Object<K>),
    Deleted(Metadata),
    Bookmark(Metadata),
    Error(Box<Status>),
}

/// One page of a list.
#[derive(Debug, Deserialize)]
#[serde(bound = "T: Deserialize<'de>")]
pub(super) struct Page<T> {
    #[serde(default)]
    pub(super) metadata: PageMetadata,
    #[serde(default = "Vec::new", deserialize_with = "null_is_empty")]
    pub(super) items: Vec<T>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PageMetadata {
    pub(super) resource_version: Option<String>,
    /// Asks for the next page; empty or absent on the last one.
    #[serde(rename = "continue")]
    pub(super) next: Option<String>,
}

fn null_is_empty<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

#[derive(Deserialize)]
struct Line<'a, T> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    object: T,
}

/// Fails only for what is no event at all.
pub(super) fn event<K: Kind>(line: &[u8]) -> serde_json::Result<WatchEvent<K>> {
    match serde_json::from_slice::<Line<'_, K>>(line) {
        Ok(Line { kind, object }) if kind != "ERROR" => Ok(event_of(&kind, Ok(object))),
        _ => {
            let Line { kind, object } = serde_json::from_slice::<Line<'_, Value>>(line)?;
            if kind == "ERROR" {
                return serde_json::from_value(object).map(WatchEvent::Error);
            }
            Ok(event_of(&kind, single(object)))
        }
    }
}

fn event_of<K: Kind>(kind: &str, object: Object<K>) -> WatchEvent<K> {
    let metadata = |object: Object<K>| match object {
        Ok(object) => object.metadata().clone(),
        Err(unreadable) => unreadable.metadata,
    };
    match kind {
        "DELETED" => WatchEvent::Deleted(metadata(object)),
        "BOOKMARK" => WatchEvent::Bookmark(metadata(object)),
        _ => WatchEvent::Put(object),
    }
}

/// Fails only for what is no list at all.
pub(super) fn page<K: Kind>(text: &str) -> serde_json::Result<Page<Object<K>>> {
    if let Ok(Page { metadata, items }) = serde_json::from_str::<Page<K>>(text) {
        return Ok(Page { metadata, items: items.into_iter().map(Ok).collect() });
    }
    let Page { metadata, items } = serde_json::from_str::<Page<Value>>(text)?;
    Ok(Page { metadata, items: items.into_iter().map(single).collect() })
}

/// One object by itself; one that cannot be read still says who it is, if it can.
fn single<K: DeserializeOwned>(value: Value) -> Object<K> {
    let field = |name: &str| value.get("metadata")?.get(name)?.as_str().map(str::to_owned);
    let metadata = Metadata {
        namespace: field("namespace").unwrap_or_default(),
        name: field("name").unwrap_or_default(),
        resource_version: field("resourceVersion"),
        ..Metadata::default()
    };
    K::deserialize(value).map_err(|error| Box::new(Unreadable { metadata, why: error.to_string() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::objects::Service;

    #[test]
    fn a_wrong_type_costs_only_its_object() {
        let list = serde_json::json!({
            "metadata": { "resourceVersion": "7" },
            "items": [
                { "metadata": { "name": "good", "namespace": "a" }, "spec": { "clusterIP": "10.0.0.1" } },
                { "metadata": { "name": "bad", "namespace": "a", "resourceVersion": "6" }, "spec": { "ports": "eighty" } },
                { "metadata": "nothing" },
            ],
        });
        let items = page::<Service>(&list.to_string()).unwrap().items;
        assert_eq!(items[0].as_ref().unwrap().metadata.name, "good");
        let Unreadable { metadata, why } = &**items[1].as_ref().unwrap_err();
        assert_eq!((&*metadata.namespace, &*metadata.name), ("a", "bad"));
        assert_eq!(metadata.resource_version.as_deref(), Some("6"));
        assert!(why.contains("expected a sequence"), "{why}");
        assert!(items[2].is_err());
    }

    #[test]
    fn an_empty_list_may_be_null() {
        assert!(page::<Service>(r#"{"metadata":{"resourceVersion":"7"},"items":null}"#).unwrap().items.is_empty());
    }

    #[test]
    fn an_event_says_what_happened_whatever_the_order_of_its_fields() {
        let read = |line: &str| event::<Service>(line.as_bytes()).unwrap();
        assert!(matches!(read(r#"{"object":{"metadata":{"name":"a"}},"type":"ADDED"}"#), WatchEvent::Put(Ok(_))));
        assert!(matches!(read(r#"{"type":"MODIFIED","object":{"spec":7}}"#), WatchEvent::Put(Err(_))));
        assert!(matches!(read(r#"{"type":"DELETED","object":{"metadata":{"name":"a"},"spec":7}}"#),
            WatchEvent::Deleted(metadata) if metadata.name == "a"));
        assert!(matches!(read(r#"{"type":"ERROR","object":{"kind":"Status","code":410}}"#),
            WatchEvent::Error(status) if status.code == 410));
    }
}
