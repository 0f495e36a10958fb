//! One directed test for each rule of deployments and removals.

use edgepoint::{
    manager::{
        Error,
        core::{Answer, Effect, Event, Failed},
    },
    model::{AppshotId, State},
};

use crate::{
    apps,
    desk::{Desk, reason, seconds},
};

/// Its golden appshot could not be taken: the instance serves instead.
fn deployed_without_golden(app: edgepoint::model::App) -> (Desk, edgepoint::model::InstanceId) {
    let mut desk = Desk::empty("app");
    let id = desk.begin_deploy(app, "first");
    desk.began(id, Ok(()));
    desk.prepared(id, Ok(()));
    desk.parked(id, Err(reason()));
    desk.forget();
    (desk, id)
}

#[test]
fn the_idle_timer_runs_from_the_deployment_on() {
    let (mut desk, id) = deployed_without_golden(apps::plain("app"));
    assert_eq!(desk.entry().running(), 1);
    desk.wait(seconds(9));
    assert!(!desk.was_stopped(id));
    desk.wait(seconds(1));
    assert!(desk.was_stopped(id), "nobody ever asked for it");
}

#[test]
fn what_cannot_be_dumped_and_keeps_its_state_never_sleeps() {
    let (mut desk, id) = deployed_without_golden(apps::keeper("app"));
    desk.wait(seconds(100));
    assert!(!desk.was_stopped(id) && !desk.was_parked(id));
    let token = desk.sleep();
    assert!(matches!(desk.answer(token), Some(Err(Error::NotSlept { .. }))));
}

#[test]
fn a_new_release_serves_while_the_old_one_drains() {
    let mut desk = Desk::deployed(apps::plain("app"));
    let old = desk.up();
    desk.busy.insert(old);
    let new = desk.begin_deploy(apps::plain("app"), "second");
    desk.began(new, Ok(()));
    desk.prepared(new, Ok(()));
    assert_eq!(desk.entry().release, apps::release("first"), "not yet");
    desk.parked(new, Ok(()));
    assert_eq!(desk.entry().release, apps::release("second"));
    let waiter = desk.request();
    let next = desk.made();
    let golden = AppshotId::golden(&apps::release("second"));
    assert_eq!(desk.image_of(next), Some(golden));
    desk.began(next, Ok(()));
    assert_eq!(desk.leased, vec![waiter]);
    assert!(!desk.was_stopped(old) && !desk.was_forgotten("first"));
    desk.feed(Event::Drained { instance: old });
    assert!(desk.was_stopped(old) && !desk.was_forgotten("first"));
    desk.ended(old);
    assert!(desk.was_forgotten("first") && !desk.was_forgotten("second"));
}

#[test]
fn requests_that_never_end_do_not_hold_an_old_release() {
    let mut desk = Desk::deployed(apps::keeper("app"));
    let old = desk.up();
    desk.busy.insert(old);
    desk.deploy(apps::keeper("app"), "second");
    desk.wait(seconds(29));
    assert!(!desk.was_stopped(old));
    desk.wait(seconds(1));
    assert!(desk.was_stopped(old) && !desk.was_parked(old));
}

#[test]
fn a_failed_deployment_leaves_the_old_release_serving() {
    // Where it fails: start, health check, end of its processes.
    for at in 0..3 {
        let mut desk = Desk::deployed(apps::plain("app"));
        let old = desk.up();
        let new = desk.begin_deploy(apps::plain("app"), "second");
        match at {
            0 => desk.began(new, Err(reason())),
            1 => {
                desk.began(new, Ok(()));
                desk.prepared(new, Err(reason()));
                assert!(desk.was_stopped(new));
                desk.ended(new);
            }
            _ => desk.ended(new),
        }
        let failed =
            |(_, answer): &(_, Result<_, _>)| matches!(answer, Err(Error::DeployFailed(_)));
        assert!(desk.answers.iter().any(failed));
        assert_eq!(desk.entry().release, apps::release("first"));
        assert!(desk.was_forgotten("second") && !desk.was_forgotten("first"));
        assert!(desk.core.instance(old).is_some_and(|(_, i)| i.is_running()));
    }
}

#[test]
fn a_first_deployment_that_fails_leaves_nothing() {
    let mut desk = Desk::empty("app");
    let id = desk.begin_deploy(apps::plain("app"), "first");
    let waiter = desk.request();
    let token = desk.wake(1);
    desk.began(id, Err(reason()));
    let unknown = Error::UnknownApp(desk.app.clone());
    assert_eq!(desk.refused, vec![(waiter, unknown.clone())]);
    assert_eq!(desk.answer(token), Some(&Err(unknown)), "found while reading");
    assert_eq!(desk.core.entries().count(), 0);
    assert!(desk.was_forgotten("first"));
}

/// Found while reading: the release that came back was forgotten with its former instances.
#[test]
fn a_release_that_comes_back_is_not_forgotten() {
    for fails in [false, true] {
        let mut desk = Desk::deployed(apps::keeper("app"));
        let old = desk.up();
        desk.busy.insert(old);
        desk.deploy(apps::keeper("app"), "second");
        let id = desk.begin_deploy(apps::keeper("app"), "first");
        desk.began(id, Ok(()));
        desk.prepared(id, Ok(()));
        desk.parked(id, if fails { Err(reason()) } else { Ok(()) });
        assert_eq!(desk.entry().release, apps::release("first"));
        desk.feed(Event::Drained { instance: old });
        desk.ended(old);
        assert!(!desk.was_forgotten("first") && desk.was_forgotten("second"));
    }
}

/// Found while reading: two instances served, of an app that keeps its state.
#[test]
fn an_instance_of_a_release_that_comes_back_does_not_serve_beside_the_new_one() {
    let mut desk = Desk::deployed(apps::keeper("app"));
    let old = desk.up();
    desk.busy.insert(old);
    desk.deploy(apps::keeper("app"), "second");
    let id = desk.begin_deploy(apps::keeper("app"), "first");
    desk.began(id, Ok(()));
    desk.prepared(id, Ok(()));
    desk.parked(id, Err(reason()));
    desk.busy.insert(id);
    desk.wait(seconds(30));
    assert!(desk.was_stopped(old));
    assert_eq!(desk.entry().running(), 1);
}

/// Simulation, seed 251 of `apps_come_and_sleep`: the removal never ended.
#[test]
fn what_is_parked_while_its_app_is_removed_or_replaced_leaves_no_image() {
    for result in [Ok(()), Err(reason())] {
        for removed in [true, false] {
            let mut desk = Desk::deployed(apps::keeper("app"));
            let id = desk.up();
            desk.wait(seconds(5));
            assert!(desk.was_parked(id));
            let removal = if removed {
                Some(desk.remove())
            } else {
                let new = desk.begin_deploy(apps::keeper("app"), "second");
                desk.began(new, Ok(()));
                desk.prepared(new, Ok(()));
                desk.feed(Event::Parked {
                    instance: new,
                    result: Ok(edgepoint::manager::ImageStatus {
                        id: AppshotId::golden(&apps::release("second")),
                        bytes: edgepoint::model::Bytes(1),
                    }),
                });
                None
            };
            let bytes = edgepoint::model::Bytes(1);
            let image = edgepoint::manager::ImageStatus { id: AppshotId::parked(id), bytes };
            let result = result.clone().map(|()| image);
            let taken = result.is_ok();
            desk.feed(Event::Parked { instance: id, result });
            if taken {
                let appshot = AppshotId::parked(id);
                assert!(desk.asked.contains(&Effect::Discard { appshot }));
            } else {
                assert!(desk.was_stopped(id), "it does not serve again");
                desk.ended(id);
            }
            assert!(desk.was_forgotten("first"));
            match removal {
                Some(token) => {
                    assert_eq!(desk.answer(token), Some(&Ok(Answer::Removed)));
                    assert_eq!(desk.core.entries().count(), 0);
                }
                None => assert_eq!(desk.entry().parked, None),
            }
        }
    }
}

/// Found while reading: the failure was counted against the new release.
#[test]
fn an_old_release_that_fails_on_its_way_up_does_not_harm_the_new_one() {
    for state in [State::Keep, State::Discard] {
        let mut app = apps::plain("app");
        app.sleep.state = state;
        app.sleep.on_lost_state = edgepoint::model::OnLostState::Error;
        let mut desk = Desk::deployed(app.clone());
        if state == State::Keep {
            let id = desk.up();
            desk.wait(seconds(5));
            desk.parked(id, Ok(()));
        }
        desk.request();
        let coming = desk.made();
        desk.deploy(app, "second");
        desk.began(coming, Err(Failed::Unusable("damaged".into())));
        assert!(desk.entry().lost.is_none() && desk.entry().failures == 0);
        assert!(desk.entry().golden_image().is_some());
        assert!(desk.was_forgotten("first"));
    }
}

#[test]
fn a_removal_ends_what_comes_up_and_answers_when_nothing_is_left() {
    for fails in [true, false] {
        let mut desk = Desk::deployed(apps::plain("app"));
        let waiter = desk.request();
        let coming = desk.made();
        let token = desk.remove();
        assert_eq!(desk.refused, vec![(waiter, Error::UnknownApp(desk.app.clone()))]);
        assert_eq!(desk.answer(token), None);
        if fails {
            desk.began(coming, Err(reason()));
        } else {
            desk.began(coming, Ok(()));
            assert!(desk.was_stopped(coming));
            desk.ended(coming);
        }
        assert_eq!(desk.answer(token), Some(&Ok(Answer::Removed)));
        assert_eq!(desk.core.entries().count(), 0);
        assert!(desk.was_forgotten("first"));
    }
}

/// A tester found it: after a kernel update the app started cold for ever, and nothing helped.
#[test]
fn a_golden_appshot_that_became_unusable_is_made_again() {
    let mut desk = Desk::deployed(apps::keeper("app"));
    desk.request();
    desk.began(desk.made(), Err(Failed::Unusable("another kernel".into())));
    let cold = desk.started();
    desk.began(cold, Ok(()));
    desk.prepared(cold, Ok(()));
    let golden = desk.started();
    assert_ne!(golden, cold, "one more is started for the appshot alone");
    desk.began(golden, Ok(()));
    desk.prepared(golden, Ok(()));
    desk.parked(golden, Ok(()));
    assert!(desk.entry().golden_image().is_some());
    assert!(desk.core.instance(cold).unwrap().1.is_running(), "the other one serves on");
    desk.sleep();
    assert!(desk.was_parked(cold));
}

#[test]
fn a_release_without_a_golden_appshot_gets_another_try_when_deployed_again() {
    let mut desk = Desk::deployed(apps::keeper("app"));
    desk.request();
    desk.began(desk.made(), Err(Failed::Unusable("another kernel".into())));
    let cold = desk.started();
    desk.began(cold, Ok(()));
    desk.prepared(cold, Ok(()));
    let golden = desk.started();
    desk.began(golden, Ok(()));
    desk.prepared(golden, Ok(()));
    desk.parked(golden, Err(reason()));
    assert!(desk.was_stopped(golden) && desk.entry().running() == 1);
    desk.ended(golden);
    desk.forget();
    let golden = desk.begin_deploy(apps::keeper("app"), "first");
    desk.began(golden, Ok(()));
    desk.prepared(golden, Ok(()));
    desk.parked(golden, Ok(()));
    assert!(desk.entry().golden_image().is_some());
    let (_, serving) = desk.core.instance(cold).unwrap();
    assert!(serving.is_running(), "its state is kept: it is the same release");
}
