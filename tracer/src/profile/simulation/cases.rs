//! The allocation sites of the table.

mod leaking;

use super::{Blocks, Case};
use crate::trend::simulation::{Random, Truth};

/// Longer than any recording.
const FOR_EVER: f64 = f64::INFINITY;
/// Time constant of the churn that leaks hide in, unless a case says otherwise.
const CHURN_S: f64 = 1.0;

fn case(name: &'static str, truth: Truth, make: fn(&mut Random, &mut Blocks)) -> Case {
    Case { name, truth, make }
}

/// Standard Pareto variable with this exponent: at least 1.
fn pareto(random: &mut Random, exponent: f64) -> f64 {
    (1.0 - random.uniform()).powf(-1.0 / exponent)
}

/// Allocations at random moments between two times, `rate` a second (Poisson's process).
fn arrivals(random: &mut Random, from_s: f64, to_s: f64, rate: f64, mut each: impl FnMut(&mut Random, f64)) {
    let mut at_s = from_s + random.exponential() / rate;
    while at_s < to_s {
        each(random, at_s);
        at_s += random.exponential() / rate;
    }
}

/// How a site allocates: it differs from seed to seed.
#[derive(Clone, Copy)]
struct Load {
    /// Blocks a second: 20 to 500.
    rate: f64,
    /// Mean size of a block: 32 bytes to 16 KiB.
    bytes: f64,
    /// Whether sizes differ.
    varies: bool,
}

impl Load {
    fn new(random: &mut Random) -> Self {
        let spread = |random: &mut Random, low: f64, high: f64| low * (high / low).powf(random.uniform());
        Self {
            rate: spread(random, 20.0, 500.0),
            bytes: spread(random, 32.0, 16_384.0),
            varies: random.uniform() < 0.5,
        }
    }

    fn size(self, random: &mut Random) -> f64 {
        if self.varies { self.bytes * random.exponential() } else { self.bytes }
    }

    /// All through the recording, with lifetimes of a distribution.
    fn churn(self, random: &mut Random, blocks: &mut Blocks, lifetime_s: impl Fn(&mut Random) -> f64) {
        arrivals(random, 0.0, blocks.length(), self.rate, |random, at_s| {
            let bytes = self.size(random);
            blocks.push(at_s, lifetime_s(random), bytes);
        });
    }

    fn short(self, random: &mut Random, blocks: &mut Blocks) {
        self.churn(random, blocks, |random| CHURN_S * random.exponential());
    }

    /// Part of what is allocated is kept.
    fn leak(self, random: &mut Random, blocks: &mut Blocks, part: f64) {
        let from_s = 0.0;
        self.leak_from(random, blocks, part, from_s);
        blocks.leak_bytes_per_s = Some(part * self.rate * self.bytes);
    }

    fn leak_from(self, random: &mut Random, blocks: &mut Blocks, part: f64, from_s: f64) {
        arrivals(random, from_s, blocks.length(), part * self.rate, |random, at_s| {
            let bytes = self.size(random);
            blocks.push(at_s, FOR_EVER, bytes);
        });
    }

    /// Churn and a leak that is a part of it.
    fn leaky(random: &mut Random, blocks: &mut Blocks, part: f64, lifetime_s: impl Fn(&mut Random) -> f64) {
        let load = Self::new(random);
        Self { rate: load.rate * (1.0 - part), ..load }.churn(random, blocks, lifetime_s);
        load.leak(random, blocks, part);
    }

    /// Everything is freed at the end of each cycle.
    fn cycles(self, random: &mut Random, blocks: &mut Blocks, period_s: f64) {
        let mut begin_s = -period_s * random.uniform();
        while begin_s < blocks.length() {
            let end_s = begin_s + period_s * random.between(0.9, 1.1);
            arrivals(random, begin_s, end_s, self.rate, |random, at_s| {
                let bytes = self.size(random);
                blocks.push(at_s, end_s - at_s, bytes);
            });
            begin_s = end_s;
        }
    }

    /// A cache that is full after `full_s`; each further entry replaces the oldest, or any one.
    fn cache(self, random: &mut Random, blocks: &mut Blocks, full_s: f64, replaces_oldest: bool) {
        let mut entries: Vec<(f64, f64)> = Vec::new();
        let mut oldest = 0;
        let length_s = blocks.length();
        arrivals(random, 0.0, length_s, self.rate, |random, at_s| {
            let entry = (at_s, self.size(random));
            if at_s < full_s {
                return entries.push(entry);
            }
            let count = entries.len().max(1);
            oldest = (oldest + 1) % count;
            let at = if replaces_oldest { oldest } else { (random.uniform() * count as f64) as usize };
            if let Some(place) = entries.get_mut(at) {
                let (born_s, bytes) = std::mem::replace(place, entry);
                blocks.push(born_s, at_s - born_s, bytes);
            }
        });
        for (born_s, bytes) in entries {
            blocks.push(born_s, FOR_EVER, bytes);
        }
    }

    /// Memory that is kept, taken at a rate that falls with this time constant: a cache whose keys have all been seen after a
    /// while, or a program that warms up.
    fn fill(self, random: &mut Random, blocks: &mut Blocks, constant_s: f64) {
        arrivals(random, 0.0, blocks.length(), self.rate, |random, at_s| {
            if random.uniform() < (-at_s / constant_s).exp() {
                let bytes = self.size(random);
                blocks.push(at_s, FOR_EVER, bytes);
            }
        });
    }

    /// Churn of this lifetime whose rate is `part(time)` of the load's.
    fn modulated(self, random: &mut Random, blocks: &mut Blocks, lifetime_s: f64, part: impl Fn(f64) -> f64) {
        arrivals(random, 0.0, blocks.length(), self.rate, |random, at_s| {
            if random.uniform() < part(at_s) {
                let bytes = self.size(random);
                blocks.push(at_s, lifetime_s * random.exponential(), bytes);
            }
        });
    }
}

/// Every case of the table.
pub fn cases() -> Vec<Case> {
    let mut cases = churning();
    cases.extend(filling());
    cases.extend(cycling());
    cases.extend(leaking::leaking());
    cases.extend(leaking::leaking_otherwise());
    cases
}

fn churning() -> Vec<Case> {
    use Truth::{Bounded, Unknowable};
    vec![
        case("churn, lifetimes exponential, 0.05 s", Bounded, |r, b| {
            Load::new(r).churn(r, b, |r| 0.05 * r.exponential());
        }),
        case("churn, exponential, 1 s", Bounded, |r, b| Load::new(r).short(r, b)),
        case("churn, exponential, 3 s", Bounded, |r, b| Load::new(r).churn(r, b, |r| 3.0 * r.exponential())),
        case("churn, exponential, 10 s", Bounded, |r, b| {
            Load::new(r).churn(r, b, |r| 10.0 * r.exponential())
        }),
        case("churn, exponential, 60 s", Bounded, |r, b| {
            Load::new(r).churn(r, b, |r| 60.0 * r.exponential())
        }),
        case("churn, exponential, 600 s", Unknowable, |r, b| {
            Load::new(r).churn(r, b, |r| 600.0 * r.exponential());
        }),
        case("churn, log-normal, median 0.3 s, σ 2", Bounded, |r, b| {
            Load::new(r).churn(r, b, |r| 0.3 * (2.0 * r.normal()).exp());
        }),
        case("churn, Pareto, 0.1 s and more, exponent 1.2", Bounded, |r, b| {
            Load::new(r).churn(r, b, |r| 0.1 * pareto(r, 1.2));
        }),
        case("churn, fixed, 2 s", Bounded, |r, b| Load::new(r).churn(r, b, |_| 2.0)),
        case("queue, first in first out, 10 s", Bounded, |r, b| {
            Load::new(r).churn(r, b, |r| r.between(9.0, 11.0));
        }),
        case("queue, first in first out, 20 s", Bounded, |r, b| {
            Load::new(r).churn(r, b, |r| r.between(19.0, 21.0));
        }),
        case("short churn and sessions of 20 s", Bounded, |r, b| {
            let load = Load::new(r);
            load.short(r, b);
            Load { rate: 0.1 * load.rate, ..load }.churn(r, b, |r| 20.0 * r.exponential());
        }),
        case("few large buffers, replaced every 5 s", Bounded, |r, b| {
            Load { rate: 2.0, bytes: 1e6, varies: true }.churn(r, b, |r| 5.0 * r.exponential());
        }),
        case("bursts", Bounded, |r, b| {
            let load = Load::new(r);
            arrivals(r, 0.0, b.length(), 0.3, |r, at_s| {
                for _ in 0..(load.rate * r.exponential()) as usize {
                    let bytes = load.size(r);
                    b.push(at_s + 0.1 * r.uniform(), 0.5 + r.exponential(), bytes);
                }
            });
        }),
        case("load in waves of a minute", Bounded, |r, b| {
            let phase = r.uniform();
            Load::new(r).modulated(r, b, CHURN_S, |at_s| {
                0.5 + 0.45 * (std::f64::consts::TAU * (at_s / 60.0 + phase)).sin()
            });
        }),
        case("load that rises all the time", Bounded, |r, b| {
            let length_s = b.length();
            Load::new(r).modulated(r, b, 0.5, |at_s| 0.1 + 0.9 * at_s / length_s);
        }),
    ]
}

fn filling() -> Vec<Case> {
    use Truth::{Bounded, Unknowable};
    vec![
        case("LRU cache, full after 20 to 70 %", Bounded, |r, b| {
            let full_s = r.between(0.2, 0.7) * b.length();
            Load::new(r).cache(r, b, full_s, true);
        }),
        case("LRU cache, full after 20 to 70 %, and churn", Bounded, |r, b| {
            let load = Load::new(r);
            load.short(r, b);
            let full_s = r.between(0.2, 0.7) * b.length();
            Load { rate: 0.2 * load.rate, ..load }.cache(r, b, full_s, true);
        }),
        case("cache, any entry replaced, full after 20 to 70 %", Bounded, |r, b| {
            let full_s = r.between(0.2, 0.7) * b.length();
            Load::new(r).cache(r, b, full_s, false);
        }),
        case("cache that takes what is new, time constant a fifth", Bounded, |r, b| {
            Load::new(r).fill(r, b, b.length() / 5.0);
        }),
        case("cache that takes what is new, time constant a half", Bounded, |r, b| {
            Load::new(r).fill(r, b, b.length() / 2.0);
        }),
        case("the same, and churn", Bounded, |r, b| {
            let load = Load::new(r);
            load.short(r, b);
            Load { rate: 0.2 * load.rate, ..load }.fill(r, b, b.length() / 2.0);
        }),
        case("cache that still fills at the end, evenly", Unknowable, |r, b| {
            Load::new(r).cache(r, b, FOR_EVER, true);
        }),
        case("warm-up of 1 to 5 s, and churn", Bounded, |r, b| {
            let load = Load::new(r);
            load.short(r, b);
            let constant_s = r.between(1.0, 5.0);
            load.fill(r, b, constant_s);
        }),
        case("pool that grew once", Bounded, |r, b| {
            let (load, at_s) = (Load::new(r), r.uniform() * b.length());
            for _ in 0..(2.0 * load.rate) as usize {
                b.push(at_s + 0.5 * r.uniform(), FOR_EVER, load.bytes);
            }
        }),
        case("pool that grew once, and churn", Bounded, |r, b| {
            let (load, at_s) = (Load::new(r), r.uniform() * b.length());
            load.short(r, b);
            for _ in 0..(2.0 * load.rate) as usize {
                b.push(at_s + 0.5 * r.uniform(), FOR_EVER, load.bytes);
            }
        }),
        case("shrinks: taken at once, given back evenly", Bounded, |r, b| {
            let (load, length_s) = (Load::new(r), b.length());
            for _ in 0..(5.0 * load.rate) as usize {
                let born_s = r.uniform();
                b.push(born_s, 1.0 + 1.2 * length_s * r.uniform(), load.bytes);
            }
        }),
    ]
}

fn cycling() -> Vec<Case> {
    use Truth::{Bounded, Unknowable};
    vec![
        case("sawtooth of 2 s", Bounded, |r, b| Load::new(r).cycles(r, b, 2.0)),
        case("sawtooth of 5 s", Bounded, |r, b| Load::new(r).cycles(r, b, 5.0)),
        case("sawtooth of 10 s", Bounded, |r, b| Load::new(r).cycles(r, b, 10.0)),
        case("sawtooth of 20 s", Bounded, |r, b| Load::new(r).cycles(r, b, 20.0)),
        case("sawtooth of ten times the recording", Unknowable, |r, b| {
            let period_s = 10.0 * b.length();
            Load::new(r).cycles(r, b, period_s);
        }),
        case("batches: half a second of work every 5 s, freed together", Bounded, |r, b| {
            let load = Load::new(r);
            let mut begin_s = -5.0 * r.uniform();
            while begin_s < b.length() {
                let end_s = begin_s + r.between(0.5, 3.0);
                arrivals(r, begin_s, begin_s + 0.5, 4.0 * load.rate, |r, at_s| {
                    let bytes = load.size(r);
                    b.push(at_s, end_s.max(at_s + 0.01) - at_s, bytes);
                });
                begin_s += 5.0;
            }
        }),
    ]
}
