//! One directed test for each rule of waking and sleeping.

use std::time::Duration;

use edgepoint::{
    manager::{
        Error,
        core::{Answer, Effect, Event, Failed, Note},
        waiting_room::Waiter,
    },
    model::{AppshotId, OnLostState},
};

use crate::{
    apps,
    desk::{Desk, reason, seconds},
};

#[test]
fn one_wake_serves_many_waiters() {
    let mut desk = Desk::deployed(apps::plain("app"));
    let waiters: Vec<Waiter> = (0..3).map(|_| desk.request()).collect();
    assert_eq!(desk.makings(), 1);
    let id = desk.made();
    assert!(desk.leased.is_empty());
    desk.began(id, Ok(()));
    assert_eq!(desk.leased, waiters, "first come, first served");
    assert_eq!(desk.makings(), 1);
}

#[test]
fn full_waiting_room_is_refused_at_once() {
    let mut desk = Desk::deployed(apps::plain("app"));
    for _ in 0..3 {
        desk.request();
    }
    let late = desk.request();
    let full = Error::WaitingRoomFull(desk.app.clone());
    assert_eq!(desk.refused, vec![(late, full)]);
}

#[test]
fn a_passed_deadline_is_a_wake_timeout() {
    let mut desk = Desk::deployed(apps::plain("app"));
    let waiter = desk.request();
    desk.wait(seconds(10) - Duration::from_millis(1));
    assert!(desk.refused.is_empty());
    desk.wait(Duration::from_millis(1));
    let timeout = Error::WakeTimeout(desk.app.clone());
    assert_eq!(desk.refused, vec![(waiter, timeout)]);
}

#[test]
fn an_unknown_app_is_refused() {
    let mut desk = Desk::empty("app");
    let waiter = desk.request();
    assert_eq!(desk.refused, vec![(waiter, Error::UnknownApp(apps::name("app")))]);
}

#[test]
fn an_idle_instance_is_parked_if_it_keeps_its_state_and_ended_if_not() {
    let mut desk = Desk::deployed(apps::keeper("app"));
    let id = desk.up();
    desk.wait(seconds(5));
    assert!(desk.was_parked(id));
    desk.parked(id, Ok(()));
    desk.request();
    let next = desk.made();
    assert_eq!(desk.image_of(next), Some(AppshotId::parked(id)));
    assert_eq!(desk.entry().parked, None, "it is used once");

    let mut desk = Desk::deployed(apps::plain("app"));
    let id = desk.up();
    desk.wait(seconds(5));
    assert!(desk.was_stopped(id) && !desk.was_parked(id));
    desk.ended(id);
    desk.request();
    let golden = AppshotId::golden(&apps::release("first"));
    assert_eq!(desk.image_of(desk.made()), Some(golden));
}

/// Parked once, then asked for; the instance that is being restored.
fn restoring(policy: OnLostState) -> (Desk, AppshotId, Waiter) {
    let mut app = apps::keeper("app");
    app.sleep.on_lost_state = policy;
    let mut desk = Desk::deployed(app);
    let id = desk.up();
    desk.wait(seconds(5));
    desk.parked(id, Ok(()));
    let waiter = desk.request();
    desk.asked.retain(|effect| matches!(effect, Effect::Restore { .. }));
    (desk, AppshotId::parked(id), waiter)
}

fn says_lost(desk: &Desk) -> bool {
    desk.notes.iter().any(|note| matches!(note, Note::StateLost { .. }))
}

#[test]
fn a_parked_image_is_tried_three_times_unless_it_is_damaged() {
    for (failed, tries) in [(reason(), 3), (Failed::Unusable("damaged".into()), 1)] {
        let (mut desk, image, waiter) = restoring(OnLostState::Cold);
        for number in 1..=tries {
            assert!(!says_lost(&desk), "try {number}");
            assert_eq!(desk.image_of(desk.made()), Some(image.clone()));
            desk.began(desk.made(), Err(failed.clone()));
        }
        assert!(says_lost(&desk));
        assert!(desk.asked.contains(&Effect::Discard { appshot: image }));
        let cold = desk.started();
        let (_, instance) = desk.core.instance(cold).unwrap();
        assert!(instance.lost_state);
        desk.began(cold, Ok(()));
        desk.prepared(cold, Ok(()));
        assert_eq!(desk.leased, vec![waiter]);
    }
}

#[test]
fn lost_state_refuses_if_the_app_said_so_and_the_image_stays_for_a_person() {
    let (mut desk, image, waiter) = restoring(OnLostState::Error);
    desk.began(desk.made(), Err(Failed::Unusable("another kernel".into())));
    let error = Error::StateLost(desk.app.clone());
    assert_eq!(desk.refused, vec![(waiter, error.clone())]);
    desk.forget();
    let next = desk.request();
    assert_eq!(desk.refused, vec![(next, error)]);
    assert_eq!(desk.asked, vec![], "nothing is discarded, nothing is made");
    desk.wake(1);
    assert_eq!(desk.image_of(desk.made()), Some(image.clone()), "a person tries it again");
    desk.began(desk.made(), Err(Failed::Unusable("another kernel".into())));
    assert!(desk.entry().lost.is_some());
    desk.wake(1);
    desk.began(desk.made(), Ok(()));
    assert!(desk.entry().lost.is_none() && desk.entry().running() == 1);
}

#[test]
fn a_deployment_heals_lost_state() {
    let (mut desk, image, _) = restoring(OnLostState::Error);
    desk.began(desk.made(), Err(Failed::Unusable("damaged".into())));
    desk.forget();
    let id = desk.begin_deploy(apps::keeper("app"), "second");
    desk.began(id, Ok(()));
    desk.prepared(id, Ok(()));
    desk.parked(id, Ok(()));
    assert!(desk.asked.contains(&Effect::Discard { appshot: image }));
    desk.request();
    assert_ne!(desk.made(), id);
}

#[test]
fn an_app_that_ends_by_itself_has_lost_its_state() {
    for policy in [OnLostState::Cold, OnLostState::Error] {
        let mut app = apps::keeper("app");
        app.sleep.on_lost_state = policy;
        let mut desk = Desk::deployed(app);
        let id = desk.up();
        desk.wait(seconds(2));
        desk.ended(id);
        assert!(says_lost(&desk));
        let waiter = desk.request();
        if policy == OnLostState::Error {
            assert_eq!(desk.refused, vec![(waiter, Error::StateLost(desk.app.clone()))]);
        } else {
            let (_, instance) = desk.core.instance(desk.made()).unwrap();
            assert!(instance.lost_state);
        }
    }
}

/// The hook ran: files may have changed since the image was taken.
#[test]
fn an_image_whose_processes_ran_is_not_restored_again() {
    let mut app = apps::keeper("app");
    app.snapshot.after_restore = Some("/awake".into());
    let mut desk = Desk::deployed(app);
    let id = desk.up();
    desk.wait(seconds(5));
    desk.parked(id, Ok(()));
    desk.request();
    let restored = desk.made();
    desk.began(restored, Ok(()));
    desk.prepared(restored, Err(reason()));
    assert!(desk.was_stopped(restored) && says_lost(&desk));
    desk.ended(restored);
    assert_eq!(desk.image_of(desk.started()), None);
}

/// Simulation, seed 32 of `instances_fail_to_come_up_and_to_park`.
#[test]
fn lost_state_is_told_also_if_the_cold_start_fails_first() {
    let mut desk = Desk::deployed(apps::keeper("app"));
    let id = desk.up();
    desk.wait(seconds(5));
    desk.parked(id, Ok(()));
    desk.request();
    desk.began(desk.made(), Err(Failed::Unusable("damaged".into())));
    desk.began(desk.started(), Err(reason()));
    desk.wait(seconds(1));
    desk.request();
    let (_, instance) = desk.core.instance(desk.made()).unwrap();
    assert!(instance.lost_state);
}

#[test]
fn a_damaged_golden_appshot_is_given_up_and_a_slow_one_is_not() {
    for (failed, remains) in [(Failed::Unusable("damaged".into()), false), (reason(), true)] {
        let mut desk = Desk::deployed(apps::plain("app"));
        desk.request();
        desk.began(desk.made(), Err(failed));
        let cold = desk.started();
        desk.began(cold, Ok(()));
        desk.prepared(cold, Ok(()));
        assert_eq!(desk.leased.len(), 1);
        assert_eq!(desk.entry().golden_image().is_some(), remains);
    }
}

#[test]
fn a_request_takes_back_an_idle_instance_that_drains() {
    let mut desk = Desk::deployed(apps::keeper("app"));
    let id = desk.up();
    // It is idle when looked at; before it is closed a request slips in.
    desk.now += seconds(5);
    for effect in desk.core.handle(Event::Tick, desk.now) {
        assert_eq!(effect, Effect::LookIdle { instance: id });
    }
    desk.busy.insert(id);
    let since = Some(desk.now - seconds(5));
    desk.feed(Event::Idle { instance: id, since });
    assert_eq!(desk.entry().running(), 0);
    let waiter = desk.request();
    assert_eq!(desk.leased, vec![waiter]);
    assert_eq!(desk.asked, vec![Effect::Close { instance: id }, Effect::Open { instance: id }]);
    desk.feed(Event::Drained { instance: id });
    assert!(!desk.was_parked(id), "a late word of its drain changes nothing");
}

#[test]
fn an_ordered_sleep_is_not_taken_back() {
    let mut desk = Desk::deployed(apps::keeper("app"));
    let id = desk.up();
    desk.busy.insert(id);
    let token = desk.sleep();
    let waiter = desk.request();
    assert!(desk.leased.is_empty() && desk.makings() == 0);
    desk.feed(Event::Drained { instance: id });
    desk.parked(id, Ok(()));
    let slept = desk.answer(token);
    assert!(matches!(slept, Some(Ok(Answer::Slept(slept))) if slept.parked == 1));
    let next = desk.made();
    assert_eq!(desk.image_of(next), Some(AppshotId::parked(id)));
    desk.began(next, Ok(()));
    assert_eq!(desk.leased, vec![waiter]);
}

/// Found while reading: the instance was opened again, and nobody let the waiting ones in.
#[test]
fn a_sleep_that_requests_hold_up_is_called_off_and_those_who_wait_are_served() {
    let mut app = apps::keeper("app");
    app.wake.timeout = seconds(60);
    let mut desk = Desk::deployed(app);
    let id = desk.up();
    desk.busy.insert(id);
    let token = desk.sleep();
    let waiter = desk.request();
    desk.wait(seconds(30));
    assert!(matches!(desk.answer(token), Some(Err(Error::NotSlept { .. }))));
    assert_eq!(desk.leased, vec![waiter]);
    assert!(!desk.was_parked(id));
}

/// Simulation, seed 1 of `releases_come_and_go`.
#[test]
fn a_sleep_ends_also_if_what_it_waits_for_never_came_up() {
    let mut desk = Desk::deployed(apps::plain("app"));
    desk.request();
    let coming = desk.made();
    let token = desk.sleep();
    desk.began(coming, Err(reason()));
    assert!(matches!(desk.answer(token), Some(Ok(Answer::Slept(_)))));
    assert!(desk.entry().sleeping.is_none());
}

#[test]
fn an_instance_that_cannot_be_parked_runs_on() {
    let mut desk = Desk::deployed(apps::keeper("app"));
    let id = desk.up();
    let token = desk.sleep();
    let waiter = desk.request();
    desk.parked(id, Err(reason()));
    assert!(matches!(desk.answer(token), Some(Err(Error::NotSlept { .. }))));
    assert_eq!(desk.leased, vec![waiter]);
    assert!(desk.entry().parked.is_none());
    desk.forget();
    desk.wait(seconds(9));
    assert!(!desk.was_parked(id), "it has a longer pause");
    desk.wait(seconds(1));
    assert!(desk.was_parked(id));
}

/// Found while reading: an answer that comes after `Found` must not wake what was given up.
#[test]
fn an_answer_that_comes_too_late_changes_nothing() {
    let mut desk = Desk::deployed(apps::plain("app"));
    let waiter = desk.request();
    let id = desk.made();
    desk.feed(Event::Away);
    desk.began(id, Err(Failed::AgentAway));
    desk.found(&[], &[AppshotId::golden(&apps::release("first"))]);
    let second = desk.made();
    assert_ne!(second, id, "it never began, so it is asked for again");
    desk.prepared(id, Ok(()));
    desk.prepared(id, Err(reason()));
    desk.began(id, Ok(()));
    assert!(desk.leased.is_empty() && desk.refused.is_empty());
    desk.began(second, Ok(()));
    assert_eq!(desk.leased, vec![waiter]);
}

#[test]
fn what_came_up_while_the_agent_was_away_is_taken_over() {
    let (mut desk, _, waiter) = restoring(OnLostState::Error);
    let id = desk.made();
    desk.feed(Event::Away);
    desk.began(id, Err(Failed::AgentAway));
    desk.found(&[id], &[AppshotId::golden(&apps::release("first"))]);
    assert!(desk.asked.contains(&Effect::Adopt { instance: id }));
    desk.began(id, Ok(()));
    assert_eq!(desk.leased, vec![waiter]);
    assert!(!says_lost(&desk));
}

#[test]
fn without_an_agent_nothing_is_asked_and_those_who_wait_hear_why() {
    let mut desk = Desk::deployed(apps::plain("app"));
    desk.feed(Event::Away);
    let waiter = desk.request();
    assert_eq!(desk.asked, vec![]);
    desk.wait(seconds(10));
    assert!(matches!(&desk.refused[..], [(of, Error::Unavailable(_))] if *of == waiter));
    desk.request();
    desk.found(&[], &[AppshotId::golden(&apps::release("first"))]);
    assert_eq!(desk.makings(), 1);
}

#[test]
fn what_nothing_refers_to_is_removed_when_the_agent_is_back() {
    let (mut desk, image, _) = restoring(OnLostState::Cold);
    let id = desk.made();
    desk.began(id, Ok(()));
    desk.forget();
    desk.feed(Event::Away);
    let golden = AppshotId::golden(&apps::release("first"));
    let stale = AppshotId::parked(edgepoint::model::InstanceId::new(999));
    desk.found(&[id], &[golden, image.clone(), stale.clone()]);
    let unused = [image, stale].map(|appshot| Effect::Discard { appshot });
    let release = apps::release("unknown");
    assert_eq!(desk.asked, [&unused[..], &[Effect::Forget { release }]].concat());
}

#[test]
fn state_that_is_neither_running_nor_parked_is_lost_and_that_is_said_once() {
    let mut desk = Desk::deployed(apps::keeper("app"));
    let golden = AppshotId::golden(&apps::release("first"));
    desk.found(&[], std::slice::from_ref(&golden));
    assert!(!says_lost(&desk), "it has never served");
    let (entry, app) = (desk.entry(), desk.app.clone());
    let (release, declared) = (entry.release.clone(), entry.app.clone());
    desk.core = edgepoint::manager::core::Core::new(1000);
    desk.core.restore_entry(release, declared, 5, true);
    desk.found(&[], std::slice::from_ref(&golden));
    assert!(says_lost(&desk));
    desk.forget();
    desk.found(&[], &[golden]);
    assert!(!says_lost(&desk));
    desk.request();
    let (of, instance) = desk.core.instance(desk.made()).unwrap();
    assert!(*of == app && instance.lost_state);
}

#[test]
fn an_instance_that_does_not_end_is_asked_again() {
    let mut desk = Desk::deployed(apps::plain("app"));
    let id = desk.up();
    desk.wait(seconds(5));
    assert!(desk.was_stopped(id));
    desk.forget();
    desk.feed(Event::NotStopped { instance: id });
    desk.wait(seconds(10));
    assert!(desk.was_stopped(id));
    desk.ended(id);
    assert!(desk.core.instance(id).is_none());
}

#[test]
fn what_a_person_put_to_sleep_stays_so_until_a_request() {
    let mut app = apps::plain("app");
    app.scale.min = 1;
    let mut desk = Desk::empty("app");
    let golden = desk.begin_deploy(app, "first");
    desk.began(golden, Ok(()));
    desk.prepared(golden, Ok(()));
    desk.parked(golden, Ok(()));
    let id = desk.made();
    desk.began(id, Ok(()));
    desk.sleep();
    desk.ended(id);
    desk.forget();
    desk.wait(seconds(60));
    assert_eq!(desk.makings(), 0);
    desk.request();
    assert_eq!(desk.makings(), 1);
}

/// The agent died between a restore and the removal of its image.
#[test]
fn a_found_instance_that_keeps_its_state_outdates_its_image() {
    let mut desk = Desk::deployed(apps::keeper("app"));
    let id = desk.up();
    desk.wait(seconds(5));
    desk.parked(id, Ok(()));
    let image = desk.entry().parked.clone().unwrap();
    let found = edgepoint::model::InstanceId::new(1000);
    desk.found(&[found], std::slice::from_ref(&image.id));
    assert!(desk.asked.contains(&Effect::Adopt { instance: found }));
    assert!(desk.asked.contains(&Effect::Discard { appshot: image.id }));
    assert_eq!(desk.entry().parked, None);
    let (_, instance) = desk.core.instance(found).unwrap();
    assert_eq!(instance.generation, 7);
    desk.began(found, Err(reason()));
    assert!(desk.was_stopped(found), "it lives, so it is ended");
}
