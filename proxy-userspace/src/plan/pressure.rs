//! How full tables are, and when to tell somebody: once, as soon as four fifths are taken.

use std::collections::BTreeSet;

/// How much of one table is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pressure {
    pub table: &'static str,
    pub used: u32,
    /// Entries that it has, or may grow to.
    pub capacity: u32,
}

impl Pressure {
    fn reaches(&self, percent: u64) -> bool {
        u64::from(self.used) * 100 >= u64::from(self.capacity) * percent
    }

    /// Time to tell somebody.
    pub fn is_high(&self) -> bool {
        self.reaches(80)
    }
}

/// The tables that somebody was told of.
#[derive(Debug, Default)]
pub struct Alarm(BTreeSet<&'static str>);

impl Alarm {
    /// Those that became nearly full. Who was named is named again only after it fell below 70 %.
    pub fn news(&mut self, tables: impl IntoIterator<Item = Pressure>) -> Vec<Pressure> {
        let mut news = Vec::new();
        for table in tables {
            if !table.reaches(70) {
                self.0.remove(table.table);
            } else if table.is_high() && self.0.insert(table.table) {
                news.push(table);
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_named_once_until_it_was_well_below() {
        let mut alarm = Alarm::default();
        let mut names = |used| alarm.news([Pressure { table: "T", used, capacity: 100 }]).len();
        assert_eq!([79, 80, 79, 80, 100, 70, 80, 69, 79, 80].map(&mut names), [0, 1, 0, 0, 0, 0, 0, 0, 0, 1]);
    }
}
