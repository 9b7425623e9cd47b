//! Random numbers, the same in each run, and the sizes drawn from them.

/// A multiplicative congruential generator with a folded product: cheap, and random enough to defeat
/// a branch predictor.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

/// Sizes that a loop draws from: few enough to stay in the first-level cache.
pub(crate) type Sizes = [u16; SIZES];
pub(crate) const SIZES: usize = 1024;

impl Random {
    pub(crate) fn new(seed: usize) -> Self {
        Self((seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    #[inline(always)]
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0xa076_1d64_78bd_642f);
        let product = u128::from(self.0) * u128::from(self.0 ^ 0xe703_7ed1_a0b4_28db);
        #[allow(clippy::cast_possible_truncation, reason = "the halves are folded")]
        let folded = (product >> 64) as u64 ^ product as u64;
        folded
    }

    /// A number below `bound`.
    #[inline(always)]
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        scale(self.next(), bound)
    }

    /// A number from 0 to 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }

    /// A size whose logarithm is uniform from `least` to `most`.
    pub(crate) fn log_uniform(&mut self, least: usize, most: usize) -> usize {
        let (low, high) = ((least as f64).ln(), (most as f64).ln());
        let size = (low + self.unit() * (high - low)).exp().round();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in range")]
        let size = size as usize;
        size.clamp(least, most)
    }
}

/// The upper half of `random`, scaled to below `bound`. The lower half is left for another use.
#[inline(always)]
pub(crate) fn scale(random: u64, bound: usize) -> usize {
    #[allow(clippy::cast_possible_truncation, reason = "below `bound`")]
    let scaled = (((random >> 32) * bound as u64) >> 32) as usize;
    scaled
}

/// Sizes whose logarithms are uniform from `least` to `most`.
pub(crate) fn log_uniform_sizes(least: usize, most: usize) -> Box<Sizes> {
    let mut random = Random::new(7);
    Box::new(std::array::from_fn(|_| to_u16(random.log_uniform(least, most))))
}

/// Sizes that are uniform from `least` to `most`.
pub(crate) fn uniform_sizes(least: usize, most: usize) -> Box<Sizes> {
    let mut random = Random::new(7);
    Box::new(std::array::from_fn(|_| to_u16(least + random.below(most - least + 1))))
}

fn to_u16(size: usize) -> u16 {
    u16::try_from(size).unwrap_or(u16::MAX)
}
