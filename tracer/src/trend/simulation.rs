//! Made-up series whose truth is known, and how often the verdict on them is wrong: the table in `docs/verdicts.md`.
//!
//! All series are of a process with [`BASE_BYTES`], sampled every second. *Churn* is memory that is taken and given back:
//! [`CHURN_BYTES_PER_S`]. The leaks are 5 % of the churn, the smallest that the method promises to find.

use super::{Floors, Kind, judge};

/// Level on which everything is.
pub const BASE_BYTES: f64 = 200e6;
/// Bytes per second that are taken and given back.
pub const CHURN_BYTES_PER_S: f64 = 10e6;
/// Of the churn.
const LEAK: f64 = 0.05;

/// Pseudo-random numbers: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014). The same seed gives the same table everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Numbers from a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to below 1.
    pub fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Between two values.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// Standard normal, by Box and Muller.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Exponential with mean 1.
    pub fn exponential(&mut self) -> f64 {
        -(1.0 - self.uniform()).ln()
    }
}

/// Whether a series leaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// It does not; calling it growth is an error.
    Bounded,
    /// It does; not calling it growth is an error.
    Leaks,
    /// Nobody can tell at this length: shown, without a bar.
    Unknowable,
}

/// A family of series.
pub struct Case {
    /// What it is.
    pub name: &'static str,
    /// Whether it leaks.
    pub truth: Truth,
    make: fn(&mut Random, usize) -> Vec<f64>,
}

impl Case {
    /// One of them: `samples` values, one second apart.
    pub fn series(&self, seed: u64, samples: usize) -> Vec<(f64, f64)> {
        let mut random = Random::new(seed);
        (self.make)(&mut random, samples)
            .into_iter()
            .enumerate()
            // Pages are whole.
            .map(|(second, value)| (second as f64, ((BASE_BYTES + value) / 4096.0).round() * 4096.0))
            .collect()
    }

    /// How often each kind was said over `seeds` seeds from `first_seed` on, in the order of [`Kind::ALL`].
    pub fn rates(&self, first_seed: u64, seeds: u64, samples: usize) -> [f64; Kind::ALL.len()] {
        let mut counts = [0.0; Kind::ALL.len()];
        for seed in first_seed..first_seed.saturating_add(seeds) {
            let said = judge(&self.series(seed, samples), &Floors::RSS).kind;
            for (kind, count) in Kind::ALL.into_iter().zip(&mut counts) {
                *count += f64::from(u8::from(kind == said)) / seeds as f64;
            }
        }
        counts
    }
}

fn case(name: &'static str, truth: Truth, make: fn(&mut Random, usize) -> Vec<f64>) -> Case {
    Case { name, truth, make }
}

fn each(count: usize, value: impl FnMut(f64) -> f64) -> Vec<f64> {
    (0..count).map(|second| second as f64).map(value).collect()
}

/// Short-lived memory: a sample sees anything between none and all of one second's churn.
fn churn(random: &mut Random) -> f64 {
    random.uniform() * CHURN_BYTES_PER_S
}

fn leak(second: f64) -> f64 {
    LEAK * CHURN_BYTES_PER_S * second
}

/// Deviation of what is live of the churn when it consists of blocks of 16 KiB that live this long on average: the number
/// of them is Poisson's.
fn blocks(lifetime_s: f64) -> f64 {
    16_384.0 * (CHURN_BYTES_PER_S / 16_384.0 * lifetime_s).sqrt()
}

/// Memory with a lifetime: a first-order process of this relaxation time around a level.
fn wander(random: &mut Random, count: usize, relaxation_s: f64, deviation: f64) -> Vec<f64> {
    let keep = (-1.0 / relaxation_s).exp();
    let mut state = random.normal();
    each(count, |_| {
        state = keep * state + (1.0 - keep * keep).sqrt() * random.normal();
        deviation * state
    })
}

/// A collector's cycle: rises by the churn and falls back, in a period that is no whole number of samples.
fn sawtooth(random: &mut Random, count: usize, period_s: f64) -> Vec<f64> {
    let mut phase = random.uniform();
    let mut period = period_s;
    each(count, |_| {
        phase += 1.0 / period;
        if phase >= 1.0 {
            phase -= phase.floor();
            period = period_s * random.between(0.9, 1.1);
        }
        CHURN_BYTES_PER_S * period_s * phase + 0.02 * churn(random)
    })
}

fn plus(mut values: Vec<f64>, more: impl Fn(f64) -> f64) -> Vec<f64> {
    for (second, value) in values.iter_mut().enumerate() {
        *value += more(second as f64);
    }
    values
}

/// A small noise from any source, between none and a fifth of a second's churn.
fn noise(random: &mut Random) -> impl FnMut() -> f64 {
    let mut random = random.clone();
    let size = random.uniform() * 0.2 * CHURN_BYTES_PER_S;
    move || size * random.normal()
}

/// Every case of the table.
pub fn cases() -> Vec<Case> {
    use Truth::{Bounded, Leaks, Unknowable};
    vec![
        case("level, no noise", Bounded, |_, n| vec![0.0; n]),
        case("level, normal noise", Bounded, |r, n| each(n, |_| 0.3 * CHURN_BYTES_PER_S * r.normal())),
        case("level, churn of a second", Bounded, |r, n| each(n, |_| churn(r))),
        case("level, bursts", Bounded, |r, n| {
            each(n, |_| if r.uniform() < 0.1 { 10.0 * churn(r) } else { 0.1 * churn(r) })
        }),
        case("filled cache, entries replaced", Bounded, |r, n| wander(r, n, 3.0, 0.1 * CHURN_BYTES_PER_S)),
        case("cache that fills, then level (after 20 to 70 %)", Bounded, |r, n| {
            let full = r.between(0.2, 0.7) * n as f64;
            let mut noise = noise(r);
            each(n, |second| 2.0 * CHURN_BYTES_PER_S * second.min(full) + noise())
        }),
        case("sawtooth of 2 s", Bounded, |r, n| sawtooth(r, n, 2.0)),
        case("sawtooth of 3.3 s", Bounded, |r, n| sawtooth(r, n, 3.3)),
        case("sawtooth of 5 s", Bounded, |r, n| sawtooth(r, n, 5.0)),
        case("sawtooth of 10 s", Bounded, |r, n| sawtooth(r, n, 10.0)),
        case("sawtooth of 40 s", Unknowable, |r, n| sawtooth(r, n, 40.0)),
        case("warm-up, time constant 1 to 5 s", Bounded, |r, n| {
            let constant = r.between(1.0, 5.0);
            let mut noise = noise(r);
            each(n, |second| 10.0 * CHURN_BYTES_PER_S * (1.0 - (-second / constant).exp()) + noise())
        }),
        case("warm-up, time constant 10 s", Bounded, |r, n| {
            let mut noise = noise(r);
            each(n, |second| 10.0 * CHURN_BYTES_PER_S * (1.0 - (-second / 10.0).exp()) + noise())
        }),
        case("pool that grew once", Bounded, |r, n| {
            let at = r.uniform() * n as f64;
            let mut noise = noise(r);
            each(n, |second| if second >= at { 2.0 * CHURN_BYTES_PER_S } else { 0.0 } + noise())
        }),
        case("pool that grew twice", Bounded, |r, n| {
            let at = [r.uniform() * n as f64, r.uniform() * n as f64];
            let mut noise = noise(r);
            each(n, |second| {
                2.0 * CHURN_BYTES_PER_S * at.iter().filter(|at| second >= **at).count() as f64 + noise()
            })
        }),
        case("churn of lifetime 3 s", Bounded, |r, n| wander(r, n, 3.0, CHURN_BYTES_PER_S)),
        case("churn of lifetime 10 s", Bounded, |r, n| wander(r, n, 10.0, CHURN_BYTES_PER_S)),
        case("churn of lifetime 60 s", Bounded, |r, n| wander(r, n, 60.0, CHURN_BYTES_PER_S)),
        case("random walk without bounds", Unknowable, |r, n| {
            let mut state = 0.0;
            each(n, |_| {
                state += 0.3 * CHURN_BYTES_PER_S * r.normal();
                state
            })
        }),
        case("random walk between walls", Bounded, |r, n| {
            let mut state = r.uniform();
            each(n, |_| {
                state = (state + 0.2 * r.normal()).abs();
                if state > 1.0 {
                    state = 2.0 - state;
                }
                2.0 * CHURN_BYTES_PER_S * state
            })
        }),
        case("shrinking", Bounded, |r, n| each(n, |second| churn(r) - leak(second))),
        case("leak, no noise", Leaks, |_, n| each(n, leak)),
        case("leak under churn of a second", Leaks, |r, n| each(n, |second| churn(r) + leak(second))),
        case("leak under churn, normal noise", Leaks, |r, n| {
            each(n, |second| 0.3 * CHURN_BYTES_PER_S * r.normal() + leak(second))
        }),
        case("leak under sawtooth of 2 s", Unknowable, |r, n| plus(sawtooth(r, n, 2.0), leak)),
        case("leak under sawtooth of 3.3 s", Unknowable, |r, n| plus(sawtooth(r, n, 3.3), leak)),
        case("leak under sawtooth of 5 s", Unknowable, |r, n| plus(sawtooth(r, n, 5.0), leak)),
        case("leak under churn of blocks that live 3 s", Leaks, |r, n| {
            plus(wander(r, n, 3.0, blocks(3.0)), leak)
        }),
        case("leak in steps of 3 s", Leaks, |r, n| {
            let phase = r.uniform() * 3.0;
            each(n, |second| leak(((second + phase) / 3.0).floor() * 3.0) + 0.01 * churn(r))
        }),
        case("leak of random sizes", Leaks, |r, n| {
            let mut state = 0.0;
            each(n, |_| {
                state += leak(1.0) * r.exponential();
                state
            })
        }),
        case("leak in proportion to itself", Leaks, |r, n| {
            each(n, |second| churn(r) + BASE_BYTES * ((second / 60.0).exp2() - 1.0))
        }),
    ]
}
