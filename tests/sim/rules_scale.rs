//! One directed test for each rule of how many instances there are, and of failing again and again.

use std::time::Duration;

use edgepoint::{
    manager::{
        Error,
        core::{Answer, Note},
    },
    model::{App, AppshotId},
};

use crate::{
    apps,
    desk::{Desk, reason, seconds},
};

fn wide(max: u32, clonable: bool) -> App {
    let mut app = apps::plain("app");
    app.scale.max = max;
    app.clonable = clonable;
    app
}

/// How long it is refused after a failure.
fn pause(desk: &Desk) -> Duration {
    match desk.refused.last() {
        Some((_, Error::WakeFailed { retry_after, .. })) => *retry_after,
        other => panic!("refused with {other:?}"),
    }
}

#[test]
fn a_crash_loop_backs_off_with_growing_pauses() {
    // Fails to start, is not healthy, dies right after it came up.
    for way in 0..3 {
        let mut desk = Desk::empty("app");
        let id = desk.begin_deploy(apps::plain("app"), "first");
        desk.began(id, Ok(()));
        desk.prepared(id, Ok(()));
        desk.parked(id, Err(reason()));
        desk.sleep();
        desk.ended(id);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            desk.forget();
            desk.request();
            let id = desk.started();
            match way {
                0 => desk.began(id, Err(reason())),
                1 => {
                    desk.began(id, Ok(()));
                    desk.prepared(id, Err(reason()));
                    desk.ended(id);
                }
                _ => {
                    desk.began(id, Ok(()));
                    desk.prepared(id, Ok(()));
                    desk.ended(id);
                }
            }
            desk.request();
            pauses.push(pause(&desk));
            let makings = desk.makings();
            desk.wait(pause(&desk) - Duration::from_millis(1));
            assert_eq!(desk.makings(), makings, "it pauses");
            desk.wait(Duration::from_millis(1));
        }
        let expected = [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000];
        assert_eq!(pauses, expected.map(Duration::from_millis), "way {way}");
        // One that lives is forgiven.
        let id = desk.up();
        desk.wait(seconds(2));
        desk.ended(id);
        assert_eq!(desk.entry().failures, 0);
    }
}

#[test]
fn an_instance_that_has_run_for_long_is_replaced_at_once() {
    let mut app = wide(1, true);
    app.sleep.park_after = Some(Duration::from_millis(100));
    let mut desk = Desk::deployed(app);
    let id = desk.up();
    desk.busy.insert(id);
    desk.wait(seconds(60));
    desk.ended(id);
    assert_eq!(desk.entry().backoff_until, None, "idle looks do not make it young");
    desk.request();
    assert_eq!(desk.makings(), 1);
}

#[test]
fn a_failed_second_instance_sends_nobody_away_from_the_first() {
    let mut desk = Desk::deployed(wide(2, false));
    desk.up();
    desk.slots = 0;
    let waiter = desk.request();
    desk.began(desk.started(), Err(reason()));
    assert!(desk.refused.is_empty());
    desk.slots = 1;
    desk.request();
    assert_eq!(desk.leased, vec![waiter]);
    assert!(desk.refused.is_empty());
}

#[test]
fn min_instances_are_kept() {
    let mut app = wide(3, true);
    app.scale.min = 2;
    let mut desk = Desk::empty("app");
    let golden = desk.begin_deploy(app, "first");
    desk.began(golden, Ok(()));
    desk.prepared(golden, Ok(()));
    desk.asked.retain(|effect| matches!(effect, edgepoint::manager::core::Effect::Park { .. }));
    desk.parked(golden, Ok(()));
    assert_eq!(desk.makings(), 2);
    let ids: Vec<_> = desk.entry().instances.keys().copied().collect();
    ids.iter().for_each(|id| desk.began(*id, Ok(())));
    desk.wait(seconds(60));
    assert_eq!(desk.entry().running(), 2, "they do not sleep");
    desk.forget();
    desk.ended(ids[0]);
    assert_eq!(desk.makings(), 1, "one that crashed is replaced");
    assert!(desk.notes.iter().any(|note| matches!(note, Note::Crashed { .. })));
}

#[test]
fn a_second_instance_is_a_clone_only_where_that_is_allowed() {
    let golden = Some(AppshotId::golden(&apps::release("first")));
    for (clonable, image) in [(true, golden), (false, None)] {
        let mut desk = Desk::deployed(wide(2, clonable));
        desk.up();
        desk.slots = 0;
        desk.request();
        assert_eq!(desk.makings(), 1);
        assert_eq!(desk.image_of(desk.made()), image, "clonable: {clonable}");
    }
}

#[test]
fn a_crowded_app_grows_by_one_at_a_time_up_to_max() {
    let mut desk = Desk::deployed(wide(3, true));
    desk.up();
    desk.slots = 0;
    desk.request();
    desk.request();
    assert_eq!(desk.makings(), 1, "one is coming already");
    // Those who still wait when it is there ask for the next one, until there are as many as may be.
    desk.began(desk.made(), Ok(()));
    assert_eq!(desk.makings(), 2);
    desk.began(desk.made(), Ok(()));
    assert_eq!((desk.makings(), desk.entry().running()), (2, 3));
    desk.request();
    assert_eq!(desk.makings(), 2);
}

#[test]
fn a_wake_by_hand_is_answered_when_as_many_run() {
    // Asked for, what it comes to.
    for (count, running) in [(1, 1), (3, 3), (9, 3)] {
        let mut desk = Desk::deployed(wide(3, true));
        let token = desk.wake(count);
        let ids: Vec<_> = desk.entry().instances.keys().copied().collect();
        assert_eq!(ids.len(), running as usize);
        for id in ids {
            assert_eq!(desk.answer(token), None);
            desk.began(id, Ok(()));
        }
        let woken = desk.answer(token);
        assert!(matches!(woken, Some(Ok(Answer::Woken(woken))) if woken.running == running));
    }
}

/// Found while reading: nobody told the caller that the instance runs.
#[test]
fn a_wake_during_the_first_deployment_is_answered_without_a_golden_appshot_too() {
    let mut desk = Desk::empty("app");
    let id = desk.begin_deploy(apps::keeper("app"), "first");
    let token = desk.wake(1);
    desk.began(id, Ok(()));
    desk.prepared(id, Ok(()));
    desk.parked(id, Err(reason()));
    assert!(matches!(desk.answer(token), Some(Ok(Answer::Woken(_)))));
}
