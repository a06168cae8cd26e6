//! What an API server fills in before anybody sees an object: for objects that come from files.
//!
//! Only what no server has to allocate. A missing ClusterIP stays missing, and its Service is reported.

use super::objects::{EndpointSlice, Metadata, Service};

impl Service {
    pub fn fill_in_defaults(&mut self) {
        fill_in_namespace(&mut self.metadata);
    }
}

impl EndpointSlice {
    /// An unnamed port has the empty name; a port without a name would not be used at all (specification A5).
    pub fn fill_in_defaults(&mut self) {
        fill_in_namespace(&mut self.metadata);
        for port in &mut self.ports {
            port.name.get_or_insert_default();
        }
    }
}

fn fill_in_namespace(metadata: &mut Metadata) {
    if metadata.namespace.is_empty() {
        metadata.namespace = "default".into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_may_leave_out_what_the_api_fills_in() {
        let mut slice: EndpointSlice =
            serde_json::from_str(r#"{"metadata": {"name": "web-1"}, "ports": [{"port": 80}]}"#).unwrap();
        slice.fill_in_defaults();
        assert_eq!(slice.metadata.namespace, "default");
        assert_eq!(slice.ports[0].name.as_deref(), Some(""));
    }
}
