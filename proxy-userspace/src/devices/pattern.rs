//! Names of devices with `*` for any number of characters.

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
        let Some((first, rest)) = self.0.split_once('*') else { return self.0 == name };
        let Some(mut name) = name.strip_prefix(first) else { return false };
        let mut parts: Vec<&str> = rest.split('*').collect();
        let last = parts.pop().unwrap_or_default();
        for part in parts {
            // The earliest place leaves most for the parts that follow.
            let Some(at) = name.find(part) else { return false };
            name = &name[at + part.len()..];
        }
        name.ends_with(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_number_of_characters_and_all_else_for_itself() {
        for (pattern, fits, does_not) in [
            ("eth0", &["eth0"][..], &["eth", "eth00", "xeth0"][..]),
            ("eth*", &["eth", "eth0", "eth0.100"], &["et", "xeth0"]),
            ("*", &["anything"], &[]),
            ("*-up", &["a-up", "-up"], &["up", "a-up0"]),
            ("a*b*c", &["abc", "axbxc", "abbcc"], &["acb", "ab", "abcd"]),
            ("aa*aa", &["aaaa", "aaxaa"], &["aa", "aaa"]),
        ] {
            let pattern = Pattern::new(pattern).unwrap();
            for name in fits {
                assert!(pattern.matches(name), "{pattern:?} {name}");
            }
            for name in does_not {
                assert!(!pattern.matches(name), "{pattern:?} {name}");
            }
        }
    }

    #[test]
    fn what_no_device_can_be_called_is_no_pattern() {
        for text in ["", "eth 0", "a/b", "eth0:1"] {
            assert_eq!(Pattern::new(text), None, "{text:?}");
        }
    }
}
