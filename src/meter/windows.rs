//! Samples of instances in, [`WindowRecord`]s out: a pure accumulator, integers only.
//!
//! A level (memory, a parked image) holds until the next reading; CPU is the growth of a counter.
//! What crosses a border of windows is split so that the sum over the windows is the whole. Three
//! rules protect the bill: a level is never held longer than `gap_limit`; a clock that goes back
//! adds no time, but CPU still counts; and a window that was drained for the last time is never
//! written again (its record would replace the full one), late usage goes to the next window. Of an
//! instance that was found running, only what it uses from its first reading on counts here.
//! `drain` hands records over: whoever calls it keeps them until the ledger has taken them.

use std::{collections::BTreeMap, time::Duration};

use super::usage::{Owner, WindowRecord};
use crate::model::{Bytes, InstanceId, ResourceUse};

/// The length of a window. It divides the hour, so that no window belongs to two hours of a bill.
pub const WINDOW_SECONDS: u64 = 60;

const MICROS: u64 = 1_000_000;
const WINDOW_MICROS: u64 = WINDOW_SECONDS * MICROS;

/// A gap limit beyond this is cut: it bounds the windows that one sample can touch.
const MAX_GAP_MICROS: u64 = 3_600 * MICROS;

/// Windows that one instance may have open if nobody drains them; then the newest takes the rest.
const MAX_WINDOWS_PER_INSTANCE: usize = 128;

/// How long an ended instance is remembered at least, so that a late sample of it is not taken for
/// a new instance whose counter began at 0.
const MIN_GRACE_MICROS: u64 = 2 * WINDOW_MICROS;

/// The limits of a [`Windows`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How long a level is held without a new reading; at most one hour.
    pub gap_limit: Duration,
    /// How many instances are tracked at once, those that ended in the last minutes included.
    pub max_open: usize,
}

impl Default for Settings {
    /// A gap of half a minute (many missed samples of an instance that lives), and more instances
    /// than a machine can hold.
    fn default() -> Self {
        Self { gap_limit: Duration::from_secs(30), max_open: 65_536 }
    }
}

/// The answer beyond `max_open`: this instance is not metered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("instance {instance} is not metered: {max_open} instances are tracked already")]
pub struct Full {
    /// The instance that was refused.
    pub instance: InstanceId,
    /// The limit.
    pub max_open: usize,
}

/// The accumulator of all instances of one edgepoint.
#[derive(Debug)]
pub struct Windows {
    gap_micros: u64,
    max_open: usize,
    tracks: BTreeMap<InstanceId, Track>,
    gaps: u64,
    refused: u64,
}

/// One instance.
#[derive(Debug)]
struct Track {
    owner: Owner,
    /// The last reading of its CPU counter, if there was one.
    cpu_micros: Option<u64>,
    /// Its memory, unless it has not been sampled or has ended.
    memory: Option<Level>,
    /// Its parked image, if there is one.
    image: Option<Level>,
    /// When it ended.
    ended: Option<u64>,
    /// No window that begins before this (Unix seconds) is written again.
    sealed: u64,
    windows: BTreeMap<u64, Open>,
}

/// A number of bytes held since a moment.
#[derive(Debug, Clone, Copy)]
struct Level {
    since: u64,
    bytes: u64,
    /// Byte-microseconds that did not make a whole byte-second yet.
    rest: u128,
}

/// What a window has so far.
#[derive(Debug, Default)]
struct Open {
    cpu_micros: u64,
    memory_byte_seconds: u64,
    image_byte_seconds: u64,
    wakes: u64,
    changed: bool,
}

impl Windows {
    /// An empty accumulator.
    pub fn new(settings: Settings) -> Self {
        let gap = u64::try_from(settings.gap_limit.as_micros()).unwrap_or(u64::MAX);
        Self {
            gap_micros: gap.min(MAX_GAP_MICROS),
            max_open: settings.max_open,
            tracks: BTreeMap::new(),
            gaps: 0,
            refused: 0,
        }
    }

    /// A reading of an instance's counters. Its memory held the level of the reading before. Its
    /// CPU counter began at 0 with the instance, so the first reading counts whole.
    pub fn sample(
        &mut self,
        instance: InstanceId,
        owner: &Owner,
        now_unix_micros: u64,
        reading: &ResourceUse,
    ) -> Result<(), Full> {
        self.read(instance, owner, now_unix_micros, reading, 0)
    }

    /// The same for an instance that ran before this accumulator did: what its counter shows at
    /// the first reading is on somebody else's record. Later readings count as in [`Self::sample`].
    pub fn sample_found(
        &mut self,
        instance: InstanceId,
        owner: &Owner,
        now_unix_micros: u64,
        reading: &ResourceUse,
    ) -> Result<(), Full> {
        self.read(instance, owner, now_unix_micros, reading, reading.cpu_micros)
    }

    /// `baseline` is what the counter showed before the first reading.
    fn read(
        &mut self,
        instance: InstanceId,
        owner: &Owner,
        now: u64,
        reading: &ResourceUse,
        baseline: u64,
    ) -> Result<(), Full> {
        let gap_micros = self.gap_micros;
        let track = self.track(instance, owner)?;
        let (span, gap) = match track.memory {
            Some(level) => Span::held(level.since, now, gap_micros),
            None => (Span::at(now), false),
        };
        let rest = track.hold_memory(span);
        // A counter that went back was reset: all it shows is new.
        let before = track.cpu_micros.unwrap_or(baseline);
        let used = reading.cpu_micros.checked_sub(before).unwrap_or(reading.cpu_micros);
        track.add_cpu(span, used);
        track.cpu_micros = Some(reading.cpu_micros);
        if track.ended.is_none() {
            track.memory = Some(Level { since: now, bytes: reading.memory.0, rest });
        }
        self.gaps += u64::from(gap);
        Ok(())
    }

    /// An instance was woken: started, restored or thawed, as the caller counts it.
    pub fn woke(
        &mut self,
        instance: InstanceId,
        owner: &Owner,
        now_unix_micros: u64,
    ) -> Result<(), Full> {
        let open = self.track(instance, owner)?.open(window_of(now_unix_micros));
        open.wakes = open.wakes.saturating_add(1);
        Ok(())
    }

    /// The parked image of an instance is there, with this size. The first call begins; each later
    /// one adds what was held since the one before; [`Self::ended`] adds the last part.
    pub fn image(
        &mut self,
        instance: InstanceId,
        owner: &Owner,
        now_unix_micros: u64,
        bytes: Bytes,
    ) -> Result<(), Full> {
        let now = now_unix_micros;
        let gap_micros = self.gap_micros;
        let track = self.track(instance, owner)?;
        let (rest, gap) = track.hold_image_until(now, gap_micros);
        track.image = Some(Level { since: now, bytes: bytes.0, rest });
        self.gaps += u64::from(gap);
        Ok(())
    }

    /// The instance holds neither memory nor image any more. An instance that is parked ends first
    /// and then has an image under the same id; that ends when the image is removed.
    pub fn ended(&mut self, instance: InstanceId, now_unix_micros: u64) {
        let now = now_unix_micros;
        let Some(track) = self.tracks.get_mut(&instance) else {
            return;
        };
        let mut gaps = 0;
        if let Some(level) = track.memory {
            let (span, gap) = Span::held(level.since, now, self.gap_micros);
            track.hold_memory(span);
            track.memory = None;
            gaps += u64::from(gap);
        }
        gaps += u64::from(track.hold_image_until(now, self.gap_micros).1);
        track.image = None;
        track.ended = Some(now);
        self.gaps += gaps;
    }

    /// The records that changed since the last call, each complete in itself: it replaces what was
    /// sent for its key before. Windows that are over for good are forgotten after this.
    pub fn drain(&mut self, now_unix_micros: u64) -> Vec<WindowRecord> {
        let grace = self.gap_micros.max(MIN_GRACE_MICROS);
        let mut records = Vec::new();
        self.tracks.retain(|&instance, track| {
            track.drain(instance, now_unix_micros, &mut records);
            // The distance, not the age: a clock that went back must not keep it for ever.
            track.image.is_some()
                || track.ended.is_none_or(|ended| ended.abs_diff(now_unix_micros) < grace)
        });
        records
    }

    /// How often a level was cut because no reading came for longer than the gap limit.
    pub fn gaps(&self) -> u64 {
        self.gaps
    }

    /// How often the answer was [`Full`].
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// How many instances are tracked now.
    pub fn tracked(&self) -> usize {
        self.tracks.len()
    }

    fn track(&mut self, instance: InstanceId, owner: &Owner) -> Result<&mut Track, Full> {
        if !self.tracks.contains_key(&instance) && self.tracks.len() >= self.max_open {
            self.refused += 1;
            return Err(Full { instance, max_open: self.max_open });
        }
        Ok(self.tracks.entry(instance).or_insert_with(|| Track {
            owner: owner.clone(),
            cpu_micros: None,
            memory: None,
            image: None,
            ended: None,
            sealed: 0,
            windows: BTreeMap::new(),
        }))
    }
}

impl Track {
    /// The window to write to: this one, or the next that may still be written.
    fn open(&mut self, window: u64) -> &mut Open {
        let mut window = window.max(self.sealed);
        if self.windows.len() >= MAX_WINDOWS_PER_INSTANCE
            && !self.windows.contains_key(&window)
            && let Some((&newest, _)) = self.windows.last_key_value()
        {
            window = newest;
        }
        let open = self.windows.entry(window).or_default();
        open.changed = true;
        open
    }

    /// Splits by time; the last part takes what the division left over.
    fn add_cpu(&mut self, span: Span, micros: u64) {
        if micros == 0 {
            return;
        }
        let mut left = micros;
        let last = window_of(span.to.saturating_sub(1).max(span.from));
        for (window, part) in span.parts().filter(|&(window, _)| window != last) {
            let share = u128::from(micros) * u128::from(part) / u128::from(span.micros());
            let share = u64::try_from(share).unwrap_or(u64::MAX).min(left);
            left -= share;
            let open = self.open(window);
            open.cpu_micros = open.cpu_micros.saturating_add(share);
        }
        let open = self.open(last);
        open.cpu_micros = open.cpu_micros.saturating_add(left);
    }

    /// Adds the memory of this span and returns what did not make a whole byte-second.
    fn hold_memory(&mut self, span: Span) -> u128 {
        let Some(mut level) = self.memory else {
            return 0;
        };
        for (window, micros) in span.parts() {
            let whole = level.take(micros);
            let open = self.open(window);
            open.memory_byte_seconds = open.memory_byte_seconds.saturating_add(whole);
        }
        level.rest
    }

    /// The same for the image; also says whether it was cut at the gap limit.
    fn hold_image_until(&mut self, now: u64, gap_micros: u64) -> (u128, bool) {
        let Some(mut level) = self.image else {
            return (0, false);
        };
        let (span, gap) = Span::held(level.since, now, gap_micros);
        for (window, micros) in span.parts() {
            let whole = level.take(micros);
            let open = self.open(window);
            open.image_byte_seconds = open.image_byte_seconds.saturating_add(whole);
        }
        (level.rest, gap)
    }

    fn drain(&mut self, instance: InstanceId, now: u64, records: &mut Vec<WindowRecord>) {
        // A window is over when the clock and every level have left it behind.
        let reached = [self.memory, self.image].iter().flatten().map(|level| level.since).min();
        let over_before = reached.map_or(now, |reached| reached.min(now));
        let (owner, sealed) = (&self.owner, &mut self.sealed);
        self.windows.retain(|&window, open| {
            if std::mem::take(&mut open.changed) {
                records.push(WindowRecord {
                    window,
                    provider: owner.provider.clone(),
                    app: owner.app.clone(),
                    instance,
                    cpu_micros: open.cpu_micros,
                    memory_byte_seconds: open.memory_byte_seconds,
                    image_byte_seconds: open.image_byte_seconds,
                    wakes: open.wakes,
                });
            }
            let end = window.saturating_add(WINDOW_SECONDS);
            let over = end.saturating_mul(MICROS) <= over_before;
            if over {
                *sealed = (*sealed).max(end);
            }
            !over
        });
    }
}

impl Level {
    /// The whole byte-seconds of holding it this long; the rest waits for the next part.
    fn take(&mut self, micros: u64) -> u64 {
        let held = (u128::from(self.bytes) * u128::from(micros)).saturating_add(self.rest);
        self.rest = held % u128::from(MICROS);
        u64::try_from(held / u128::from(MICROS)).unwrap_or(u64::MAX)
    }
}

/// A stretch of the wall clock, in Unix microseconds.
#[derive(Debug, Clone, Copy)]
struct Span {
    from: u64,
    to: u64,
}

impl Span {
    /// A moment.
    fn at(now: u64) -> Self {
        Self { from: now, to: now }
    }

    /// How long a level that began at `since` is held, and whether the gap limit cut it.
    fn held(since: u64, now: u64, gap_micros: u64) -> (Self, bool) {
        match now.checked_sub(since) {
            None => (Self::at(now), false),
            Some(held) if held > gap_micros => (Self { from: since, to: since + gap_micros }, true),
            Some(_) => (Self { from: since, to: now }, false),
        }
    }

    fn micros(self) -> u64 {
        self.to - self.from
    }

    /// Its parts, cut at the borders of windows: (start of the window in seconds, microseconds).
    fn parts(self) -> impl Iterator<Item = (u64, u64)> {
        let mut at = self.from;
        std::iter::from_fn(move || {
            (at < self.to).then(|| {
                let begin = at;
                at = (at - at % WINDOW_MICROS).saturating_add(WINDOW_MICROS).min(self.to);
                (window_of(begin), at - begin)
            })
        })
    }
}

/// The start, in Unix seconds, of the window that holds this Unix microsecond.
fn window_of(micros: u64) -> u64 {
    let seconds = micros / MICROS;
    seconds - seconds % WINDOW_SECONDS
}

#[cfg(test)]
mod tests;
