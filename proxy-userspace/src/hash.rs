//! Hash tables of the standard library with a hasher that suits short keys: names, addresses, ids. Its seed is random:
//! who names objects cannot tell which names collide.

use foldhash::fast::RandomState;

pub(crate) type HashMap<K, V> = std::collections::HashMap<K, V, RandomState>;
pub(crate) type HashSet<T> = std::collections::HashSet<T, RandomState>;
