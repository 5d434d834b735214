//! How long allocations are looked at, so that the whole costs no more than a share of the target's CPU time.
//!
//! Time is cut into cycles. In each there is one window, at a random place, in which the probes of allocating functions are in the
//! target; those of releasing and resizing functions are there all the time. A block that is born in a window of w in a
//! cycle of c stands for c/w blocks. The length of a window is fixed before its cycle begins, from what earlier ones have
//! cost, so that every cycle is unbiased by itself.

use tracer_common::sampling::SCALE_ONE;

/// Shortest window: below, placing and removing probes would be most of it.
const MIN_OPEN_NS: u64 = 20_000_000;
/// Cycles in a row that cannot be held before it is given up.
const MAX_MISSES: u32 = 3;
/// A cycle after one that could not be held is shorter by this: what cannot be held ends soon.
const PROBATION: u64 = 4;
/// What was spent above the budget, or left over, is made good over so many cycles.
const SMOOTHED_CYCLES: f64 = 4.0;
/// A target that does nothing pays nothing: below this part of the time, nothing need be saved.
const NEGLIGIBLE: f64 = 0.0005;

/// What was spent in some time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spent {
    /// Time that passed.
    pub wall_ns: f64,
    /// What tracing cost: programs and traps.
    pub cost_ns: f64,
    /// CPU time of the target, with that cost in it.
    pub cpu_ns: f64,
}

impl Spent {
    /// What was spent since an earlier sum.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            wall_ns: (self.wall_ns - earlier.wall_ns).max(0.0),
            cost_ns: (self.cost_ns - earlier.cost_ns).max(0.0),
            cpu_ns: (self.cpu_ns - earlier.cpu_ns).max(0.0),
        }
    }
}

/// What one cycle has cost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cycle {
    /// All of it.
    pub all: Spent,
    /// How long the window was open, in ns.
    pub open_ns: f64,
    /// Time from the opening until the probes were off, in ns.
    pub open_span_ns: f64,
    /// Cost in that time.
    pub open_cost_ns: f64,
    /// While they were off; in a cycle that was open throughout, what the probes of releases alone have cost in all of it.
    pub base: Spent,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Next {
    /// A cycle with a window of `open_ns`; blocks that are born in it stand for `scale` sixteenths.
    Window {
        /// Length of the cycle.
        cycle_ns: u64,
        /// Length of the window; that of the cycle if it need not be closed.
        open_ns: u64,
        /// Sixteenths.
        scale: u16,
    },
    /// The budget cannot be held.
    GiveUp {
        /// What the probes that must stay cost, as a part of the target's CPU time.
        base_share: f64,
        /// What all probes cost while they are in the target, as a part of its CPU time.
        open_share: f64,
    },
}

/// Holds a budget.
#[derive(Clone, Copy, Debug)]
pub struct Controller {
    /// Part of the target's CPU time.
    share: f64,
    cycle_ns: u64,
    misses: u32,
    /// What all probes cost as a part of the target's CPU time, from cycles that were open throughout: those with a short window
    /// pay for its end, too.
    open_share: Option<f64>,
}

impl Controller {
    /// `share` of the target's CPU time, in cycles of this length.
    pub const fn new(share: f64, cycle_ns: u64) -> Self {
        Self { share, cycle_ns, misses: 0, open_share: None }
    }

    /// The first cycle is open throughout, and short: what it costs is not known.
    pub const fn first(&self) -> Next {
        let cycle_ns = self.cycle_ns / 8;
        Next::Window { cycle_ns, open_ns: cycle_ns, scale: SCALE_ONE }
    }

    /// The next cycle, after one that has cost `last`, where `total` was spent so far.
    pub fn next(&mut self, last: &Cycle, total: &Spent) -> Next {
        let cycle = self.cycle_ns as f64;
        let wall_ns = last.all.wall_ns.max(1.0);
        if last.all.cost_ns <= NEGLIGIBLE * wall_ns {
            self.misses = 0;
            return self.whole();
        }
        let cpu_ns = last.all.cpu_ns.max(1.0);
        if last.open_ns >= 0.9 * wall_ns {
            self.open_share = Some(last.all.cost_ns / cpu_ns);
        }
        let rate = |cost_ns: f64, wall_ns: f64| if wall_ns > 0.0 { cost_ns / wall_ns } else { 0.0 };
        let base_rate = rate(last.base.cost_ns, last.base.wall_ns);
        // What a window costs beyond the probes that are there anyway, until its own are off, for each ns that it is open.
        let beyond = last.open_cost_ns - base_rate * last.open_span_ns;
        let open_rate = rate(beyond.max(0.0), last.open_ns).max(f64::MIN_POSITIVE);
        let allowed = self.share * last.all.cpu_ns / wall_ns * cycle;
        let debt = (total.cost_ns - self.share * total.cpu_ns) / SMOOTHED_CYCLES;
        let base = base_rate * cycle;
        // Where even without debts no window of use fits.
        if allowed - base < open_rate * MIN_OPEN_NS as f64 {
            self.misses += 1;
            if self.misses >= MAX_MISSES {
                let cpu_rate = cpu_ns / wall_ns;
                let open_share = self.open_share.unwrap_or((base_rate + open_rate) / cpu_rate);
                return Next::GiveUp { base_share: base_rate / cpu_rate, open_share };
            }
            return Self::window(self.cycle_ns / PROBATION, MIN_OPEN_NS as f64);
        }
        self.misses = 0;
        let open_ns = (allowed - debt.max(-allowed / 2.0) - base) / open_rate;
        let open_ns = open_ns.max(MIN_OPEN_NS as f64);
        if open_ns >= cycle {
            return self.whole();
        }
        Self::window(self.cycle_ns, open_ns)
    }

    /// A window of some `open_ns`. The scale is rounded up, and the window made to fit: the ratio is exact.
    fn window(cycle_ns: u64, open_ns: f64) -> Next {
        let scale = (cycle_ns as f64 / open_ns * f64::from(SCALE_ONE)).ceil().min(f64::from(u16::MAX)) as u16;
        let scale = scale.max(SCALE_ONE);
        let open_ns = cycle_ns.saturating_mul(u64::from(SCALE_ONE)) / u64::from(scale);
        Next::Window { cycle_ns, open_ns, scale }
    }

    const fn whole(&self) -> Next {
        Next::Window { cycle_ns: self.cycle_ns, open_ns: self.cycle_ns, scale: SCALE_ONE }
    }
}

#[cfg(test)]
#[allow(clippy::panic)]
mod tests {
    use super::*;

    const CYCLE_NS: u64 = 2_000_000_000;

    /// A target that is busy all the time: what a second costs with all probes, and with those that stay.
    struct Target {
        open_rate: f64,
        base_rate: f64,
    }

    impl Target {
        fn run(&self, next: Next, total: &mut Spent) -> Option<(Cycle, f64)> {
            let Next::Window { cycle_ns, open_ns, scale } = next else { return None };
            assert!(open_ns <= cycle_ns);
            let (all, open) = (cycle_ns as f64, open_ns as f64);
            let ratio = all / open * f64::from(SCALE_ONE);
            assert!((ratio - f64::from(scale)).abs() < 1e-3, "{ratio} {scale}");
            let open_cost_ns = open * (self.open_rate + self.base_rate);
            let base =
                Spent { wall_ns: all - open, cost_ns: (all - open) * self.base_rate, cpu_ns: all - open };
            let cost_ns = open_cost_ns + base.cost_ns;
            let base = if open_ns < cycle_ns {
                base
            } else {
                Spent { wall_ns: all, cost_ns: all * self.base_rate, cpu_ns: all }
            };
            total.wall_ns += all;
            total.cost_ns += cost_ns;
            total.cpu_ns += all;
            let all = Spent { wall_ns: all, cost_ns, cpu_ns: all };
            // Taking off takes a while, in which only those that stay cost something.
            let (open_span_ns, open_cost_ns) = (open + 1e7, open_cost_ns + 1e7 * self.base_rate);
            Some((Cycle { all, open_ns: open, open_span_ns, open_cost_ns, base }, open))
        }
    }

    fn steer(target: &Target, share: f64, cycles: usize) -> (Spent, f64, Next) {
        let mut controller = Controller::new(share, CYCLE_NS);
        let (mut total, mut open, mut next) = (Spent::default(), 0.0, controller.first());
        for _ in 0..cycles {
            let Some((cycle, was_open)) = target.run(next, &mut total) else { break };
            open += was_open;
            next = controller.next(&cycle, &total);
        }
        (total, open, next)
    }

    #[test]
    fn a_budget_is_held_and_used() {
        for (open_rate, base_rate) in [(0.4, 0.01), (0.1, 0.02), (0.9, 0.03), (0.06, 0.0)] {
            let (total, open, _) = steer(&Target { open_rate, base_rate }, 0.05, 30);
            let share = total.cost_ns / total.cpu_ns;
            assert!((0.045..0.0505).contains(&share), "{open_rate} {base_rate}: {share}");
            let expected = (0.05 - base_rate) / open_rate;
            let seen = open / total.wall_ns;
            assert!((seen / expected - 1.0).abs() < 0.15, "{open_rate} {base_rate}: {seen} for {expected}");
        }
    }

    #[test]
    fn what_costs_less_is_seen_all_the_time() {
        let (total, open, next) = steer(&Target { open_rate: 0.02, base_rate: 0.01 }, 0.05, 10);
        assert_eq!(open, total.wall_ns);
        assert_eq!(next, Next::Window { cycle_ns: CYCLE_NS, open_ns: CYCLE_NS, scale: SCALE_ONE });
        let (total, open, _) = steer(&Target { open_rate: 0.0, base_rate: 0.0 }, 0.001, 10);
        assert_eq!(open, total.wall_ns, "a target that does nothing");
    }

    #[test]
    fn what_cannot_be_held_is_given_up() {
        let (total, _, next) = steer(&Target { open_rate: 0.3, base_rate: 0.08 }, 0.05, 30);
        let Next::GiveUp { base_share, open_share } = next else { panic!("{next:?}") };
        assert!(
            (base_share - 0.08).abs() < 1e-6 && (open_share - 0.38).abs() < 1e-6,
            "{base_share} {open_share}"
        );
        assert!(total.wall_ns < CYCLE_NS as f64, "soon: {total:?}");
    }
}
