//! The end of the owner task: what keeps its state is parked, the rest is ended, what was counted
//! is sent, and which releases serve is written down.

use super::{
    AppName, Command, Entry, Error, Event, Message, SHORT, SHUTDOWN_PATIENCE, STOP_PATIENCE_MS,
    Task, Verb, boot, clock, error, failed, oneshot, warn,
};
use crate::model::InstanceId;

impl Task {
    pub(super) fn begin_end(&mut self, reply: oneshot::Sender<()>) {
        if let Some((replies, _)) = &mut self.ending {
            return replies.push(reply);
        }
        self.ending = Some((vec![reply], clock::now() + SHUTDOWN_PATIENCE));
        self.core.end();
        let apps: Vec<AppName> = self.core.entries().map(|(name, _)| name.clone()).collect();
        for app in apps {
            // Nobody waits for the answer; what is left afterwards is ended below.
            let token = self.number();
            self.feed(Event::Sleep { app, token });
        }
    }

    /// Ends the task once everything sleeps, or patience is at its end.
    pub(super) async fn may_end(&mut self) -> bool {
        let Some((_, deadline)) = &self.ending else {
            return false;
        };
        let busy = self.core.entries().any(|(_, e)| e.sleeping.is_some() || e.deploying.is_some());
        if busy && clock::now() < *deadline {
            return false;
        }
        let left: Vec<InstanceId> =
            self.core.entries().flat_map(|(_, e)| e.instances.keys()).copied().collect();
        for id in left {
            let Some(agent) = self.agent.clone() else {
                break;
            };
            if let Some(endpoint) = self.endpoints.get(&id) {
                endpoint.close();
            }
            let verb = Verb::Stop { instance: id, patience_ms: STOP_PATIENCE_MS };
            match agent.ask(verb, &[], SHORT).await {
                Ok((super::Reply::Stopped { usage }, _)) => self.final_sample(id, &usage),
                Ok(_) => {}
                Err(error) => warn!(instance = %id, error = ?failed(error), "cannot end it"),
            }
        }
        // Before the answer: the ledger is closed after it.
        self.send_last_windows().await;
        self.save(true);
        if let Some((replies, _)) = self.ending.take() {
            for reply in replies {
                let _ = reply.send(());
            }
        }
        true
    }

    /// Writes down which releases serve. Rare (a deployment, a removal, the end), so it may take
    /// the few milliseconds that a durable write needs.
    pub(super) fn save(&self, clean: bool) {
        let apps = self.core.entries().filter(|(_, entry)| entry.deployed).map(|(name, entry)| {
            let Entry { generation, has_state, .. } = *entry;
            let release = entry.release.clone();
            (name.clone(), boot::SavedApp { release, generation, has_state })
        });
        let saved = boot::Saved { clean, apps: apps.collect() };
        if let Err(error) = saved.write(&self.config.deployed) {
            error!(%error, "cannot write which releases serve");
        }
    }
}

/// Answers what comes before the agent was reached for the first time; true if it is the end. Nothing
/// runs then that we know of, so there is nothing to put to sleep.
pub(super) fn refuse_early(message: Message) -> bool {
    let ends = matches!(message, Message::Shutdown { .. });
    let error = || Error::Unavailable("it is starting".into());
    match message {
        Message::Acquire { reply, .. } => drop(reply.send(Err(error()))),
        Message::Command { reply, command } => {
            let _: Command = command;
            drop(reply.send(Err(error())));
        }
        Message::Status { reply } => drop(reply.send(Vec::new())),
        Message::Logs { reply, .. } => drop(reply.send(Err(error()))),
        Message::Shutdown { reply } => drop(reply.send(())),
    }
    ends
}
