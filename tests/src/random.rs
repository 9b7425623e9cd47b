//! Numbers that look random and can be had again from their seed.

/// The generator "splitmix64" (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
/// Generators", 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

/// The output function: every bit of the argument changes about half of the result's.
#[must_use]
pub const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

impl Random {
    /// The sequence that belongs to `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    /// The next 64 bits.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`, which is not 0.
    pub const fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// An index below `bound`, which is not 0.
    pub fn index(&mut self, bound: usize) -> usize {
        usize::try_from(self.below(bound as u64)).unwrap_or(0)
    }

    /// A size from `least` to about `most` bytes, of each order of magnitude as often.
    pub fn size(&mut self, least: usize, most: usize) -> usize {
        let span = u64::from((most / least.max(1)).max(1).ilog2()) + 1;
        let from = least << self.below(span);
        (from + self.index(from.max(1))).clamp(least, most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_the_published_one() {
        // From the reference implementation, with the state 1234567.
        let mut random = Random(1_234_567);
        assert_eq!(random.next(), 6_457_827_717_110_365_317);
        assert_eq!(random.next(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn sizes_cover_their_range() {
        let mut random = Random::new(1);
        let sizes: Vec<_> = (0..10_000).map(|_| random.size(1, 1 << 20)).collect();
        assert!(sizes.iter().all(|size| (1..=1 << 20).contains(size)));
        for bits in 0..20 {
            assert!(sizes.iter().any(|size| size.ilog2() == bits), "none of 2^{bits}");
        }
    }
}
