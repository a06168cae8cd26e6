//! Names of devices, as users write them.

use crate::glob;

/// `eth0`, `cali*`, `*-uplink`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// `None` for what can be the name of no device (`dev_valid_name`).
    pub fn new(text: &str) -> Option<Self> {
        let possible = |c: char| c != '/' && c != ':' && !c.is_whitespace();
        (!text.is_empty() && text.chars().all(possible)).then(|| Self(text.to_owned()))
    }

    pub fn matches(&self, name: &str) -> bool {
        glob::fits(&self.0, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_device_can_be_called_is_no_pattern() {
        for text in ["", "eth 0", "a/b", "eth0:1"] {
            assert_eq!(Pattern::new(text), None, "{text:?}");
        }
    }
}
