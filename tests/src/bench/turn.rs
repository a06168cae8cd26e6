//! Who is measured when.

use anyhow::Result;

use super::pin_to_one_cpu;

/// Every lane once a round, in another order each round, all on one CPU.
pub fn in_turn(lanes: usize, rounds: usize, mut batch: impl FnMut(usize) -> Result<()>) -> Result<()> {
    pin_to_one_cpu()?;
    let mut random = 1_u64;
    for _ in 0..rounds {
        let mut order: Vec<usize> = (0..lanes).collect();
        for end in (1..order.len()).rev() {
            // Knuth's linear congruential generator; its upper bits are good enough to shuffle.
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            order.swap(end, (random >> 33) as usize % (end + 1));
        }
        order.into_iter().try_for_each(&mut batch)?;
    }
    Ok(())
}
