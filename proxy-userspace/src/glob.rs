//! Names with `*` for any number of characters.

/// Whether `name` is one that `pattern` stands for.
pub(crate) fn fits(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_number_of_characters_and_all_else_for_itself() {
        for (pattern, fitting, others) in [
            ("eth0", &["eth0"][..], &["eth", "eth00", "xeth0"][..]),
            ("eth*", &["eth", "eth0", "eth0.100"], &["et", "xeth0"]),
            ("*", &["anything"], &[]),
            ("*-up", &["a-up", "-up"], &["up", "a-up0"]),
            ("a*b*c", &["abc", "axbxc", "abbcc"], &["acb", "ab", "abcd"]),
            ("aa*aa", &["aaaa", "aaxaa"], &["aa", "aaa"]),
        ] {
            for name in fitting {
                assert!(fits(pattern, name), "{pattern:?} {name}");
            }
            for name in others {
                assert!(!fits(pattern, name), "{pattern:?} {name}");
            }
        }
    }
}
