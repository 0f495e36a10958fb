//! The rules of the accumulator, one test each, and the conservation property over all of them.

use proptest::prelude::*;

use super::*;
use crate::model::{AppName, ProviderName};

const ID: InstanceId = InstanceId::new(7);

fn owner() -> Owner {
    Owner { provider: ProviderName::new("acme").unwrap(), app: AppName::new("shop").unwrap() }
}

fn windows(gap_seconds: u64) -> Windows {
    Windows::new(Settings { gap_limit: Duration::from_secs(gap_seconds), max_open: 2 })
}

fn reading(cpu_micros: u64, memory: u64) -> ResourceUse {
    ResourceUse { cpu_micros, memory: Bytes(memory), pids: 1, ..ResourceUse::default() }
}

/// Samples at whole seconds.
fn sample(windows: &mut Windows, second: u64, cpu_micros: u64, memory: u64) {
    windows.sample(ID, &owner(), second * MICROS, &reading(cpu_micros, memory)).unwrap();
}

/// (window, CPU, memory, image, wakes) of each drained record.
fn drain(windows: &mut Windows, second: u64) -> Vec<(u64, u64, u64, u64, u64)> {
    let records = windows.drain(second * MICROS);
    records
        .iter()
        .map(|r| (r.window, r.cpu_micros, r.memory_byte_seconds, r.image_byte_seconds, r.wakes))
        .collect()
}

#[test]
fn a_level_is_held_until_the_next_sample() {
    let mut windows = windows(60);
    sample(&mut windows, 10, 0, 100);
    sample(&mut windows, 20, 0, 7);
    sample(&mut windows, 30, 0, 0);
    assert_eq!(drain(&mut windows, 31), [(0, 0, 1_070, 0, 0)]);
}

#[test]
fn an_interval_is_split_at_the_borders_and_the_last_part_takes_the_remainder() {
    let mut windows = windows(600);
    sample(&mut windows, 50, 0, 10);
    sample(&mut windows, 140, 100, 0);
    assert_eq!(
        drain(&mut windows, 140),
        [(0, 11, 100, 0, 0), (60, 66, 600, 0, 0), (120, 23, 200, 0, 0)]
    );
}

#[test]
fn an_interval_that_ends_on_a_border_stays_before_it() {
    let mut windows = windows(60);
    sample(&mut windows, 50, 0, 1);
    sample(&mut windows, 60, 9, 1);
    assert_eq!(drain(&mut windows, 60), [(0, 9, 10, 0, 0)]);
}

#[test]
fn the_first_sample_counts_all_cpu_since_the_instance_began() {
    let mut windows = windows(60);
    sample(&mut windows, 65, 42, 1);
    assert_eq!(drain(&mut windows, 65), [(60, 42, 0, 0, 0)]);
}

#[test]
fn of_an_instance_that_was_found_only_growth_counts() {
    let mut windows = windows(60);
    let mut found = |second: u64, cpu_micros| {
        let now = second * MICROS;
        windows.sample_found(ID, &owner(), now, &reading(cpu_micros, 10)).unwrap();
    };
    found(65, 5_000);
    found(70, 5_007);
    assert_eq!(drain(&mut windows, 70), [(60, 7, 50, 0, 0)]);
    // Its only reading is its last one.
    let mut windows = super::Windows::new(Settings::default());
    windows.sample_found(ID, &owner(), MICROS, &reading(5_000, 10)).unwrap();
    windows.ended(ID, MICROS);
    assert!(windows.drain(MICROS).iter().all(|record| record.cpu_micros == 0));
}

#[test]
fn what_was_found_has_its_baseline_even_if_it_was_seen_before_its_first_reading() {
    let mut windows = windows(60);
    windows.image(ID, &owner(), 0, Bytes(0)).unwrap();
    windows.sample_found(ID, &owner(), MICROS, &reading(5_000, 0)).unwrap();
    windows.sample_found(ID, &owner(), 2 * MICROS, &reading(5_001, 0)).unwrap();
    assert_eq!(drain(&mut windows, 2), [(0, 1, 0, 0, 0)]);
}

#[test]
fn a_counter_that_went_back_counts_as_new() {
    let mut windows = windows(60);
    sample(&mut windows, 1, 100, 0);
    sample(&mut windows, 2, 30, 0);
    assert_eq!(drain(&mut windows, 2), [(0, 130, 0, 0, 0)]);
}

#[test]
fn a_clock_that_goes_back_adds_no_time_but_cpu_counts() {
    let mut windows = windows(60);
    sample(&mut windows, 50, 5, 100);
    sample(&mut windows, 20, 9, 100);
    sample(&mut windows, 21, 9, 100);
    assert_eq!(drain(&mut windows, 21), [(0, 9, 100, 0, 0)]);
    assert_eq!(windows.gaps(), 0);
}

#[test]
fn a_level_is_not_held_past_the_gap_limit() {
    let mut windows = windows(10);
    sample(&mut windows, 0, 0, 5);
    sample(&mut windows, 1_000, 8, 5);
    assert_eq!(windows.gaps(), 1);
    assert_eq!(drain(&mut windows, 1_000), [(0, 8, 50, 0, 0)]);
}

#[test]
fn only_what_changed_is_drained_and_each_record_is_whole() {
    let mut windows = windows(60);
    sample(&mut windows, 1, 5, 1);
    assert_eq!(drain(&mut windows, 2), [(0, 5, 0, 0, 0)]);
    assert_eq!(drain(&mut windows, 3), []);
    windows.woke(ID, &owner(), 4 * MICROS).unwrap();
    assert_eq!(drain(&mut windows, 4), [(0, 5, 0, 0, 1)]);
}

#[test]
fn a_window_is_open_until_every_level_has_left_it() {
    let mut windows = windows(60);
    sample(&mut windows, 50, 5, 1);
    assert_eq!(drain(&mut windows, 61), [(0, 5, 0, 0, 0)]);
    sample(&mut windows, 62, 5, 1);
    assert_eq!(drain(&mut windows, 62), [(0, 5, 10, 0, 0), (60, 0, 2, 0, 0)]);
}

#[test]
fn a_window_drained_for_the_last_time_is_never_written_again() {
    let mut windows = windows(60);
    sample(&mut windows, 50, 5, 0);
    sample(&mut windows, 70, 5, 0);
    drain(&mut windows, 70);
    sample(&mut windows, 55, 8, 0);
    assert_eq!(drain(&mut windows, 70), [(60, 3, 0, 0, 0)]);
}

#[test]
fn an_ended_instance_holds_nothing_and_a_late_sample_counts_only_growth() {
    let mut windows = windows(60);
    sample(&mut windows, 0, 5, 10);
    windows.ended(ID, 3 * MICROS);
    sample(&mut windows, 4, 6, 10);
    sample(&mut windows, 9, 6, 10);
    assert_eq!(drain(&mut windows, 10), [(0, 6, 30, 0, 0)]);
    drain(&mut windows, 122);
    assert_eq!(windows.tracked(), 1);
    drain(&mut windows, 123);
    assert_eq!(windows.tracked(), 0);
}

#[test]
fn a_parked_instance_pays_for_its_image_until_that_ends() {
    let mut windows = windows(60);
    sample(&mut windows, 0, 5, 10);
    windows.ended(ID, 2 * MICROS);
    windows.image(ID, &owner(), 10 * MICROS, Bytes(3)).unwrap();
    windows.image(ID, &owner(), 40 * MICROS, Bytes(3)).unwrap();
    windows.image(ID, &owner(), 70 * MICROS, Bytes(3)).unwrap();
    windows.ended(ID, 80 * MICROS);
    windows.ended(ID, 90 * MICROS);
    assert_eq!(drain(&mut windows, 90), [(0, 5, 20, 150, 0), (60, 0, 0, 60, 0)]);
}

#[test]
fn more_instances_than_the_limit_are_refused_by_name() {
    let mut windows = windows(60);
    for id in [1, 2] {
        windows.woke(InstanceId::new(id), &owner(), 0).unwrap();
    }
    let full = windows.woke(InstanceId::new(3), &owner(), 0).unwrap_err();
    assert_eq!(full, Full { instance: InstanceId::new(3), max_open: 2 });
    assert_eq!(windows.refused(), 1);
    windows.woke(InstanceId::new(2), &owner(), 0).unwrap();
}

#[test]
fn windows_that_nobody_drains_are_bounded_and_lose_nothing() {
    let mut windows = windows(60);
    for minute in 0..1_000 {
        sample(&mut windows, minute * 60, minute, 1);
    }
    let records = drain(&mut windows, 60_000);
    assert_eq!(records.len(), MAX_WINDOWS_PER_INSTANCE);
    assert_eq!(records.iter().map(|r| r.1).sum::<u64>(), 999);
    assert_eq!(records.iter().map(|r| r.2).sum::<u64>(), 999 * 60);
}

#[test]
fn the_greatest_values_do_not_overflow() {
    let mut windows = windows(u64::MAX);
    windows.sample(ID, &owner(), u64::MAX - MICROS, &reading(u64::MAX, u64::MAX)).unwrap();
    windows.sample(ID, &owner(), u64::MAX, &reading(0, u64::MAX)).unwrap();
    windows.image(ID, &owner(), u64::MAX, Bytes(u64::MAX)).unwrap();
    windows.ended(ID, u64::MAX);
    windows.sample(ID, &owner(), 0, &reading(u64::MAX, u64::MAX)).unwrap();
    assert!(windows.drain(u64::MAX).iter().any(|r| r.cpu_micros == u64::MAX));
}

/// What happens next: the clock moves (also back), then a sample or a drain.
#[derive(Debug, Clone)]
enum Step {
    Sample { moved: i64, cpu: u64, memory: u64 },
    Drain,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (-150_000_000_i64..300_000_000, 0_u64..1_000_000_000, 0_u64..1 << 40)
            .prop_map(|(moved, cpu, memory)| Step::Sample { moved, cpu, memory }),
        1 => Just(Step::Drain),
    ]
}

proptest! {
    #[test]
    fn the_sum_over_the_windows_is_the_whole(steps in prop::collection::vec(step(), 1..60)) {
        let gap = 120 * MICROS;
        let mut windows = windows(120);
        let mut kept = BTreeMap::new();
        let mut now = 1_000_000 * MICROS;
        let (mut cpu_total, mut held) = (0_u64, 0_u128);
        let mut level: Option<u64> = None;
        for step in steps {
            match step {
                Step::Sample { moved, cpu, memory } => {
                    now = now.saturating_add_signed(moved);
                    if let Some(level) = level {
                        let micros = u64::try_from(moved).unwrap_or(0).min(gap);
                        held += u128::from(micros) * u128::from(level);
                    }
                    level = Some(memory);
                    cpu_total += cpu;
                    windows.sample(ID, &owner(), now, &reading(cpu_total, memory)).unwrap();
                }
                Step::Drain => {
                    for record in windows.drain(now) {
                        kept.insert(record.window, record);
                    }
                }
            }
        }
        windows.ended(ID, now);
        for record in windows.drain(now) {
            kept.insert(record.window, record);
        }
        let cpu: u64 = kept.values().map(|r| r.cpu_micros).sum();
        let memory: u128 = kept.values().map(|r| u128::from(r.memory_byte_seconds)).sum();
        prop_assert_eq!(cpu, cpu_total);
        prop_assert_eq!(memory, held / u128::from(MICROS));
        prop_assert!(kept.keys().all(|window| window % WINDOW_SECONDS == 0));
    }
}
