//! SplitMix64: the one source of chance. It is made from a seed and passed in, so that a run repeats.

/// A seeded generator.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    /// True this many times in a thousand.
    pub fn permille(&mut self, chance: u64) -> bool {
        self.next() % 1000 < chance
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.between(0, of.len() as u64 - 1) as usize]
    }
}

#[test]
fn a_seed_gives_the_same_numbers_again() {
    // The first numbers of the reference implementation for seed 1234567.
    let mut rng = Rng::new(1_234_567);
    assert_eq!(rng.next(), 6_457_827_717_110_365_317);
    assert_eq!(rng.next(), 3_203_168_211_198_807_973);
}
