//! JSON of an API server to own types, object by object: a field of the wrong type costs only its object.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// One object of a list or a watch.
#[derive(Clone, Debug)]
pub(super) struct Object<T> {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) resource_version: String,
    /// Why it cannot be read, if so.
    pub(super) content: Result<T, String>,
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Object<T> {
    /// Fails only for what is no JSON at all.
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(from)?;
        drop_annotations(&mut value);
        let metadata = |field: &str| {
            let text = value.get("metadata").and_then(|metadata| metadata.get(field)).and_then(Value::as_str);
            text.unwrap_or_default().to_owned()
        };
        Ok(Self {
            namespace: metadata("namespace"),
            name: metadata("name"),
            resource_version: metadata("resourceVersion"),
            content: T::deserialize(value).map_err(|error| error.to_string()),
        })
    }
}

/// Annotations are often larger than the rest (kubectl keeps whole objects there); few of them matter to a proxy.
fn drop_annotations(object: &mut Value) {
    let annotations = object.get_mut("metadata").and_then(|metadata| metadata.get_mut("annotations"));
    if let Some(Value::Object(annotations)) = annotations {
        annotations.retain(|key, _| key.starts_with("endpoints.kubernetes.io/"));
    }
}

/// One page of a list.
#[derive(Debug, Deserialize)]
#[serde(bound = "T: DeserializeOwned")]
pub(super) struct Page<T> {
    #[serde(default)]
    pub(super) metadata: PageMetadata,
    #[serde(default = "Option::default")]
    pub(super) items: Option<Vec<Object<T>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PageMetadata {
    pub(super) resource_version: Option<String>,
    /// Asks for the next page; empty or absent on the last one.
    #[serde(rename = "continue")]
    pub(super) next: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::objects::Service;

    #[test]
    fn a_wrong_type_costs_only_its_object() {
        let page: Page<Service> = serde_json::from_value(serde_json::json!({
            "metadata": { "resourceVersion": "7" },
            "items": [
                { "metadata": { "name": "good", "namespace": "a" }, "spec": { "clusterIP": "10.0.0.1" } },
                { "metadata": { "name": "bad", "namespace": "a", "resourceVersion": "6" }, "spec": { "ports": "eighty" } },
                { "metadata": "nothing" },
            ],
        }))
        .unwrap();
        let items = page.items.unwrap();
        assert_eq!(items[0].content.as_ref().unwrap().metadata.name, "good");
        assert_eq!(
            (items[1].namespace.as_str(), items[1].name.as_str(), items[1].resource_version.as_str()),
            ("a", "bad", "6")
        );
        assert!(items[1].content.as_ref().unwrap_err().contains("expected a sequence"), "{:?}", items[1].content);
        assert!(items[2].content.is_err());
    }

    #[test]
    fn an_empty_list_may_be_null() {
        let page: Page<Service> = serde_json::from_str(r#"{"metadata":{"resourceVersion":"7"},"items":null}"#).unwrap();
        assert!(page.items.is_none());
    }
}
