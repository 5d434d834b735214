//! From the figures to the verdict.

use super::dependence::{Dependence, Drift};
use super::floor::{Floor, Line};
use super::kendall::{Pairs, Z_95};
use super::normal::{of_student, student_quantile, upper_tail};
use super::shape::{Spread, isotonic};
use super::slope::median;
use super::verdict::{Evidence, Floors, Kind, Reason, Verdict};
use super::{MAX_PAIR_POINTS, theil_sen};

/// A trend counts from here: 0.25 % to one side.
const Z_TREND: f64 = 2.9;
/// The slope in its own standard deviations must be that much more, since it trusts the normal distribution.
const Z_LINE_EXTRA: f64 = 3.2;
/// The mean step likewise, since steps are no more normal.
const Z_DRIFT_EXTRA: f64 = 0.2;
/// A rising floor counts from here.
const Z_FLOOR: f64 = 2.6;
/// Growth slows down if the second half's slope is below this part of the first half's,
const SLOWING_RATIO: f64 = 0.6;
/// and if that is as sure as this.
const Z_SLOWING: f64 = 2.0;
/// Equal steps that growth must be worth.
const MIN_RISES: f64 = 3.2;
/// Part of the growth that must lie in the second half.
const LATE_SHARE: f64 = 0.2;
/// Growth has stopped if the end is as far below the line through the first two thirds as this, in standard deviations.
const Z_SHORT: f64 = 3.0;
/// Troughs that a floor must have.
const MIN_TROUGHS: usize = 3;
/// Growth of so many swings is growth; below, it is a floor that rises.
const SAWTOOTH_GROWTH: f64 = 4.0;
/// Samples that a level end must have.
const MIN_TAIL: usize = 8;
/// Growth is not over if the level end would rise by this part of the growth in the time of the whole series.
const STILL_RISING: f64 = 0.3;
/// Room that the interval may leave for growth, as a part of the level, when no growth is claimed.
const LEVEL_ROOM: f64 = 0.02;
/// The same for a floor, as a part of the swings.
const FLOOR_ROOM: f64 = 0.5;

/// Judges a series of (seconds, bytes) in the order of time. Costs O(n log n) and a constant.
pub fn judge(points: &[(f64, f64)], floors: &Floors) -> Verdict {
    let series: Vec<(f64, f64)> =
        points.iter().copied().filter(|point| point.0.is_finite() && point.1.is_finite()).collect();
    let mut evidence = base_evidence(&series);
    let needs_samples = floors.samples.saturating_sub(series.len()) as f64;
    let step_s = evidence.span_s / series.len().saturating_sub(1).max(1) as f64;
    let needed_s = (needs_samples * step_s).max(floors.span_s - evidence.span_s);
    if series.len() < floors.samples.max(5) || evidence.span_s < floors.span_s {
        let needed_s = Some(needed_s.max(1.0));
        return Verdict { kind: Kind::Undetermined, reason: Reason::TooShort, needed_s, evidence };
    }
    let figures = Figures::of(&series, floors, &mut evidence);
    let (kind, reason, needed_s) = figures.decide(&mut evidence);
    if kind.is_growth() {
        evidence.doubling_s =
            evidence.slope.filter(|slope| *slope > 0.0).map(|slope| evidence.end.max(0.0) / slope);
    }
    Verdict { kind, reason, needed_s: needed_s.map(|needed_s| needed_s.max(1.0)), evidence }
}

/// Theil–Sen slope with its 95 % interval, allowing for autocorrelation; the interval is `None` where it is wider than
/// anything measured.
pub fn theil_sen_interval(points: &[(f64, f64)]) -> Option<(f64, Option<(f64, f64)>)> {
    let points = thinned(points);
    let pairs = Pairs::new(&points);
    let slope = pairs.slope()?;
    let dependence = Dependence::of(&residuals(&points, slope));
    Some((slope, pairs.interval(dependence.inflation)))
}

/// Groups of neighbours, each stood for by its point of median value, so that few enough are left.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= MAX_PAIR_POINTS {
        return points.to_vec();
    }
    let group = points.len().div_ceil(MAX_PAIR_POINTS);
    points
        .chunks(group)
        .filter_map(|chunk| {
            let mut sorted = chunk.to_vec();
            sorted.sort_unstable_by(|a, b| a.1.total_cmp(&b.1));
            sorted.get(sorted.len() / 2).copied()
        })
        .collect()
}

fn values(points: &[(f64, f64)]) -> Vec<f64> {
    points.iter().map(|point| point.1).collect()
}

fn median_of(points: &[(f64, f64)]) -> f64 {
    median(&mut values(points)).unwrap_or(0.0)
}

/// What is left beside the line of this slope through the medians.
fn residuals(points: &[(f64, f64)], slope: f64) -> Vec<f64> {
    let mut left: Vec<f64> = points.iter().map(|(x, y)| y - slope * x).collect();
    let middle = median(&mut left.clone()).unwrap_or(0.0);
    left.iter_mut().for_each(|value| *value -= middle);
    left
}

/// Standard deviation of normal values with this median absolute deviation.
fn robust_deviation(values: &[f64]) -> f64 {
    let mut sizes: Vec<f64> = values.iter().map(|value| value.abs()).collect();
    1.4826 * median(&mut sizes).unwrap_or(0.0)
}

fn quantile(sorted: &[f64], part: f64) -> f64 {
    let at = (sorted.len().saturating_sub(1) as f64 * part).round() as usize;
    sorted.get(at).copied().unwrap_or(0.0)
}

fn base_evidence(series: &[(f64, f64)]) -> Evidence {
    let edge = (series.len() / 10).max(3).min(series.len());
    let (start, end) = (median_of(&series[..edge]), median_of(&series[series.len() - edge..]));
    let doublings_s = doublings(series, start);
    let doubled_in_equal_times = match doublings_s.as_slice() {
        [.., before, last] => Some((last - before).abs() <= 0.25 * before.max(*last)),
        _ => None,
    };
    Evidence {
        samples: series.len(),
        span_s: series.first().zip(series.last()).map_or(0.0, |(first, last)| last.0 - first.0),
        start,
        end,
        min: series.iter().map(|point| point.1).fold(f64::INFINITY, f64::min).min(start),
        max: series.iter().map(|point| point.1).fold(f64::NEG_INFINITY, f64::max).max(end),
        doublings_s,
        doubled_in_equal_times,
        ..Evidence::default()
    }
}

/// Times between the moments at which the series reached two, four, eight… times its start for good. The start is the
/// first value, or the median of the first ones if that is more than twice as much: a process that has just begun has next to
/// nothing.
fn doublings(series: &[(f64, f64)], typical: f64) -> Vec<f64> {
    let Some(&(begin_s, first)) = series.first() else { return Vec::new() };
    let start = if first < typical / 2.0 { typical } else { first };
    let mut goal = 2.0 * start;
    let (mut since, mut times) = (begin_s, Vec::new());
    if start <= 0.0 {
        return times;
    }
    // From the end: the smallest value still to come. A peak is no doubling.
    let mut ahead = f64::INFINITY;
    let mut floors: Vec<(f64, f64)> = series
        .iter()
        .rev()
        .map(|(x, y)| {
            ahead = ahead.min(*y);
            (*x, ahead)
        })
        .collect();
    floors.reverse();
    for (x, floor) in floors {
        while floor >= goal && times.len() < 64 {
            times.push(x - since);
            since = x;
            goal *= 2.0;
        }
    }
    times
}

/// What the decisions rest on.
struct Figures<'a> {
    series: &'a [(f64, f64)],
    floors: &'a Floors,
    span_s: f64,
    level: f64,
    slope: f64,
    interval: Option<(f64, f64)>,
    /// The surer of the two tests, upwards and downwards.
    z_up: f64,
    z_down: f64,
    spread: Spread,
    /// First half's slope minus the second half's, in standard deviations; and the two.
    slowing: (f64, f64, f64),
    falls_short: bool,
    floor: Floor,
    swing: f64,
    /// Median of the steps that go up.
    upward_step: f64,
}

impl<'a> Figures<'a> {
    fn of(series: &'a [(f64, f64)], floors: &'a Floors, evidence: &mut Evidence) -> Self {
        let thin = thinned(series);
        let pairs = Pairs::new(&thin);
        let slope = pairs.slope().unwrap_or(0.0);
        let left = residuals(&thin, slope);
        let dependence = Dependence::of(&left);
        let drift = Drift::of(&thin);
        let (z_trend, z_drift) = (pairs.z(dependence.inflation), drift.map_or(0.0, |drift| drift.z));
        let z_line = line_z(&thin, &left, slope, dependence.inflation);
        let interval =
            narrower(pairs.interval(dependence.inflation), drift.map(|drift| drift.interval), slope);
        let mut sorted = residuals(series, slope);
        sorted.sort_unstable_by(f64::total_cmp);
        let swing = 0.6 * (quantile(&sorted, 0.95) - quantile(&sorted, 0.05));
        let noise = robust_deviation(&left);
        let spread = Spread::of(&values(&thin));
        let third = thin.len().div_ceil(3);
        let mut thirds = thin.chunks(third).map(|part| theil_sen(part).unwrap_or(0.0));
        evidence.slope = Some(slope);
        evidence.interval = interval;
        evidence.trend_p = Some(pairs.p(dependence.inflation));
        evidence.drift_p = drift.map(|drift| (2.0 * upper_tail(drift.z.abs())).min(1.0));
        evidence.autocorrelation = Some(dependence.autocorrelation);
        evidence.effective_samples = Some(thin.len() as f64 / dependence.inflation);
        evidence.noise = Some(noise);
        evidence.thirds = thirds.next().zip(thirds.next()).zip(thirds.next()).map(|((a, b), c)| [a, b, c]);
        evidence.rises = Some(spread.rises);
        Self {
            series,
            floors,
            span_s: evidence.span_s,
            level: median_of(series).abs(),
            slope,
            interval,
            z_up: z_trend.max(z_drift - Z_DRIFT_EXTRA).max(z_line - Z_LINE_EXTRA),
            z_down: -z_trend.min(z_drift + Z_DRIFT_EXTRA).min(z_line + Z_LINE_EXTRA),
            spread,
            slowing: slowing(&thin),
            falls_short: falls_short(&thin),
            floor: Floor::of(series, swing.max(1.0)),
            swing,
            upward_step: upward_step(series),
        }
    }

    /// Whether a slope is more than practically nothing.
    fn matters(&self, slope: f64) -> bool {
        slope * self.span_s >= self.floors.growth_bytes
            && slope * 3600.0 >= self.floors.growth_per_hour * self.level
    }

    fn decide(&self, evidence: &mut Evidence) -> (Kind, Reason, Option<f64>) {
        if self.is_sawtooth() {
            return self.decide_sawtooth(evidence);
        }
        if self.z_up >= Z_TREND {
            return if self.matters(self.slope.max(self.spread.gain / self.span_s)) {
                self.decide_rising(evidence)
            } else {
                (Kind::Level, Reason::Negligible, None)
            };
        }
        if self.z_down >= Z_TREND {
            let matters = self.matters(-self.slope);
            return if matters {
                (Kind::Shrinking, Reason::Trend, None)
            } else {
                (Kind::Level, Reason::Negligible, None)
            };
        }
        if let Some(kind) = self.settled() {
            return (kind, Reason::Settled, None);
        }
        self.decide_trendless()
    }

    /// Swings that matter, and more of them than growth.
    fn is_sawtooth(&self) -> bool {
        self.floor.troughs.len() >= 2
            && self.swing >= self.floors.growth_bytes.max(self.floors.swing * self.level)
            && self.slope.abs() * self.span_s < 1.5 * self.swing
    }

    fn decide_sawtooth(&self, evidence: &mut Evidence) -> (Kind, Reason, Option<f64>) {
        let count = self.floor.troughs.len();
        evidence.cycles = Some(count);
        let line = self.floor.line().filter(|_| count >= MIN_TROUGHS);
        let Some(line) = line else {
            return (Kind::Undetermined, Reason::FewCycles, Some(self.span_s));
        };
        let half = self.take_floor(&line, evidence);
        let Line { slope, z, .. } = line;
        let needed_s = Some(self.span_s);
        // Not the floor alone: where all of it rises, so does the floor, if with less certainty.
        let rises = z >= Z_FLOOR || (self.z_up >= Z_TREND && z >= Z_FLOOR / 2.0);
        // A trough is seen at the next sample only: it is uncertain by a step of the rise.
        let is_seen = slope * self.span_s > self.upward_step;
        if rises && is_seen && self.matters(slope) {
            return if self.is_slowing() {
                (Kind::Undetermined, Reason::Slowing, needed_s)
            } else {
                (Kind::SawtoothRising, Reason::FloorRises, None)
            };
        }
        let falls = z <= -Z_FLOOR || (self.z_down >= Z_TREND && z <= -Z_FLOOR / 2.0);
        if falls && self.matters(-slope) {
            return (Kind::Shrinking, Reason::Trend, None);
        }
        let room = (LEVEL_ROOM * self.level).max(FLOOR_ROOM * self.swing).max(self.floors.growth_bytes);
        if (slope + half) * self.span_s <= room {
            return (Kind::SawtoothLevel, Reason::FloorLevel, None);
        }
        (Kind::Undetermined, if count < 5 { Reason::FewCycles } else { Reason::Noisy }, needed_s)
    }

    fn is_slowing(&self) -> bool {
        let (z, first, second) = self.slowing;
        (z > Z_SLOWING && second < SLOWING_RATIO * first)
            || self.spread.late_share < LATE_SHARE
            || self.falls_short
    }

    fn decide_rising(&self, evidence: &mut Evidence) -> (Kind, Reason, Option<f64>) {
        let doubt = if self.is_slowing() {
            Some((Reason::Slowing, self.span_s))
        } else if self.spread.tail > 2 * self.spread.longest_pause + 3 {
            Some((Reason::JustStopped, self.span_s / 2.0))
        } else if self.spread.rises < MIN_RISES {
            Some((Reason::FewSteps, self.span_s * (MIN_RISES / self.spread.rises.max(1.0)).max(1.5)))
        } else {
            None
        };
        match doubt {
            None => self.name_growth(evidence),
            Some((reason, needed_s)) => match self.settled() {
                Some(kind) => (kind, Reason::Settled, None),
                None => (Kind::Undetermined, reason, Some(needed_s)),
            },
        }
    }

    /// Growth in cycles has a floor, whose slope is the better one.
    fn name_growth(&self, evidence: &mut Evidence) -> (Kind, Reason, Option<f64>) {
        let swings = self.floor.troughs.len() >= MIN_TROUGHS
            && self.swing >= self.floors.growth_bytes.max(self.floors.swing * self.level)
            && self.slope * self.span_s < SAWTOOTH_GROWTH * self.swing;
        match self.floor.line().filter(|line| swings && line.z >= Z_FLOOR) {
            Some(line) => {
                evidence.cycles = Some(self.floor.troughs.len());
                self.take_floor(&line, evidence);
                (Kind::SawtoothRising, Reason::FloorRises, None)
            }
            None => (Kind::Growing, Reason::Trend, None),
        }
    }

    fn take_floor(&self, line: &Line, evidence: &mut Evidence) -> f64 {
        let half = student_quantile(Z_95, line.degrees) * line.error;
        evidence.slope = Some(line.slope);
        evidence.interval = Some((line.slope - half, line.slope + half));
        half
    }

    /// Whether it grew and has been level for long enough since.
    fn settled(&self) -> Option<Kind> {
        let count = self.series.len();
        let edge = (count / 10).max(3).min(count);
        let start = median_of(&self.series[..edge]);
        let end = median_of(&self.series[count - (count / 4).max(edge)..]);
        let gain = end - start;
        if gain < self.floors.growth_bytes || gain < 0.01 * self.level {
            return None;
        }
        let fit = isotonic(&values(self.series));
        let at = fit.iter().position(|value| *value >= start + 0.9 * gain)?;
        let tail = self.series.get(at..)?;
        if tail.len() < MIN_TAIL.max(count / 4) {
            return None;
        }
        let tail = thinned(tail);
        let pairs = Pairs::new(&tail);
        let slope = pairs.slope()?;
        let left = residuals(&tail, slope);
        if gain < 4.0 * robust_deviation(&left) {
            return None;
        }
        let span_s = tail.last()?.0 - tail.first()?.0;
        // Level since must be more than no proof of growth: the interval has no room for half of what it was.
        let before_s = self.series.get(at)?.0 - self.series.first()?.0;
        let (_, most) = pairs.interval(1.0)?;
        let step_s = self.span_s / (count - 1) as f64;
        if slope * self.span_s > STILL_RISING * gain
            || most > 0.5 * gain / before_s.max(step_s)
            || most * span_s > gain
        {
            return None;
        }
        // Growth that was there from the begin and ended in the first half is how programs start.
        let grew_at_once = fit.get(count / 8).is_some_and(|value| *value >= start + 0.1 * gain);
        Some(if at * 2 <= count && grew_at_once { Kind::WarmUp } else { Kind::Plateau })
    }

    fn decide_trendless(&self) -> (Kind, Reason, Option<f64>) {
        let room = (LEVEL_ROOM * self.level).max(self.floors.growth_bytes);
        let most = self.interval.map(|interval| interval.1 * self.span_s);
        match most {
            Some(most) if most <= room => (Kind::Level, Reason::NoTrend, None),
            // The error of a slope falls with the time to the power of 1.5.
            Some(most) => {
                let factor = (most / room).powf(2.0 / 3.0).clamp(1.3, 20.0);
                (Kind::Undetermined, Reason::Noisy, Some(self.span_s * (factor - 1.0)))
            }
            None => (Kind::Undetermined, Reason::Noisy, Some(self.span_s)),
        }
    }
}

/// The slope in its own standard deviations. Ranks know no more than that every pair rises; this knows by how much.
fn line_z(points: &[(f64, f64)], left: &[f64], slope: f64, inflation: f64) -> f64 {
    let count = points.len() as f64;
    let mean = points.iter().map(|point| point.0).sum::<f64>() / count;
    let xx: f64 = points.iter().map(|point| (point.0 - mean).powi(2)).sum();
    let square: f64 = left.iter().map(|value| value * value).sum();
    let error = (square / (count - 2.0).max(1.0) * inflation / xx).sqrt();
    match slope {
        0.0 => 0.0,
        _ if error > 0.0 => of_student(slope / error, count - 2.0),
        _ => slope.signum() * 1e9,
    }
}

/// The narrower of two intervals, made to hold the slope.
fn narrower(a: Option<(f64, f64)>, b: Option<(f64, f64)>, slope: f64) -> Option<(f64, f64)> {
    let width = |interval: &(f64, f64)| interval.1 - interval.0;
    let best = match (a, b) {
        (Some(a), Some(b)) => Some(if width(&b) < width(&a) { b } else { a }),
        (one, other) => one.or(other),
    };
    best.map(|(low, high)| (low.min(slope), high.max(slope)))
}

/// How sure it is that growth slows down, in standard deviations, and the slopes of both halves.
fn slowing(points: &[(f64, f64)]) -> (f64, f64, f64) {
    let (first, second) = points.split_at(points.len() / 2);
    let (before, after) = (theil_sen(first).unwrap_or(0.0), theil_sen(second).unwrap_or(0.0));
    let mut left = residuals(first, before);
    left.extend(residuals(second, after));
    let square = left.iter().map(|value| value * value).sum::<f64>() / (left.len() as f64 - 4.0).max(1.0);
    let inverse = |part: &[(f64, f64)]| {
        let mean = part.iter().map(|point| point.0).sum::<f64>() / part.len().max(1) as f64;
        let xx: f64 = part.iter().map(|point| (point.0 - mean).powi(2)).sum();
        if xx > 0.0 { 1.0 / xx } else { f64::INFINITY }
    };
    let inflation = Dependence::of(&left).inflation;
    let error = (square * inflation * (inverse(first) + inverse(second))).sqrt();
    let error = error
        .max(step_deviation(points) * (inverse_count(first) + inverse_count(second)).sqrt() / step_s(points));
    let z = if error > 0.0 { (before - after) / error } else { (before - after).signum() * 1e9 };
    (if before == after { 0.0 } else { z }, before, after)
}

fn upward_step(points: &[(f64, f64)]) -> f64 {
    let steps = points.windows(2).map(|pair| pair[1].1 - pair[0].1);
    median(&mut steps.filter(|step| *step > 0.0).collect::<Vec<_>>()).unwrap_or(0.0)
}

/// Whether the end lies so far below the line through the first two thirds that at least half of the growth that was
/// to be expected since is missing.
fn falls_short(points: &[(f64, f64)]) -> bool {
    let (before, after) = points.split_at(points.len() * 2 / 3);
    let Some(slope) = theil_sen(before).filter(|slope| *slope > 0.0) else { return false };
    let left = residuals(before, slope);
    let last = &after[after.len() - (after.len() / 2).clamp(1, after.len())..];
    let (Some(first), Some(end)) = (before.last(), last.first()) else { return false };
    let middle =
        |part: &[(f64, f64)]| median_of(&part.iter().map(|(x, y)| (*x, y - slope * x)).collect::<Vec<_>>());
    let missing = middle(before) - middle(last);
    let count = left.len() as f64;
    let variance = left.iter().map(|value| value * value).sum::<f64>() / (count - 2.0).max(1.0);
    let inflation = Dependence::of(&left).inflation;
    let mean = before.iter().map(|point| point.0).sum::<f64>() / count;
    let xx: f64 = before.iter().map(|point| (point.0 - mean).powi(2)).sum();
    let reach = last.iter().map(|point| point.0).sum::<f64>() / last.len() as f64 - mean;
    // Of the line at that distance, and of the medians; or of a random walk that far.
    let line = variance * inflation * (reach * reach / xx + 1.57 / count + 1.57 / last.len() as f64);
    let steps = reach / step_s(points);
    let walk = step_deviation(before).powi(2) * steps / 2.0;
    let error = line.max(walk).sqrt();
    missing > Z_SHORT * error && missing > 0.5 * slope * (end.0 - first.0)
}

/// Standard deviation of the steps of a series.
fn step_deviation(points: &[(f64, f64)]) -> f64 {
    let steps: Vec<f64> = points.windows(2).map(|pair| pair[1].1 - pair[0].1).collect();
    let count = steps.len().max(1) as f64;
    let mean = steps.iter().sum::<f64>() / count;
    (steps.iter().map(|step| (step - mean).powi(2)).sum::<f64>() / count).sqrt()
}

fn inverse_count(points: &[(f64, f64)]) -> f64 {
    1.0 / points.len().max(1) as f64
}

/// Mean distance of the points in time.
fn step_s(points: &[(f64, f64)]) -> f64 {
    let span_s = points.first().zip(points.last()).map_or(0.0, |(first, last)| last.0 - first.0);
    (span_s / points.len().saturating_sub(1).max(1) as f64).max(f64::MIN_POSITIVE)
}
