//! Which order a window run gets, and what is done in the cluster while it is under way.

use crate::{
    api::{Direction, Phase, Step, Task, WindowCommand, WindowOrder},
    machine::{Effect, Transition, steps::run_policy, window::given_up::SwitchMove},
};

impl Transition<'_> {
    /// How far the persisted status lets a window run go.
    pub(crate) fn wanted_order(&self, task: Task) -> WindowOrder {
        let deadline = self.deadline();
        let command = match (self.phase(), self.status.step) {
            _ if deadline.is_none() => WindowCommand::Standby,
            (Phase::Executing, _) if self.is_unblocking() => WindowCommand::UnblockWrites,
            (Phase::Executing, Some(Step::SwitchApplication | Step::UnblockWrites))
                if self.switch_refusal(Direction::Forward).is_none() =>
            {
                WindowCommand::Switch
            }
            (Phase::RollingBack, _) if task == Task::RollbackWindow && self.is_given_up() => {
                match self.switch_move(&self.rollback_progress()) {
                    SwitchMove::UnblockWrites => WindowCommand::UnblockWrites,
                    _ => WindowCommand::BlockWrites,
                }
            }
            (Phase::RollingBack, Some(Step::RollbackSql)) => WindowCommand::Rollback,
            (Phase::RollingBack, Some(Step::SwitchBack))
                if task == Task::RollbackWindow && self.switch_refusal(Direction::Rollback).is_none() =>
            {
                WindowCommand::Switch
            }
            _ => WindowCommand::BlockWrites,
        };
        WindowOrder { command, deadline }
    }

    pub(crate) fn window_effects(&self, task: Task, attempt: u32) -> Vec<Effect> {
        let waits = run_policy(task).step.is_some_and(|step| self.waiting(step));
        let start = if waits { None } else { self.start_run(task, attempt) };
        let mut effects: Vec<Effect> = start.into_iter().collect();
        let wanted = self.wanted_order(task);
        if let Some(r) = self.observed.run(task, attempt) {
            let given = r.run.spec.window.as_ref().map_or(WindowCommand::Standby, |w| w.command);
            // Orders only move forward: a stale cache can repeat one, never take one back.
            if wanted.command > given {
                effects.push(Effect::OrderWindow { name: self.observed.run_name(task, attempt), order: wanted });
            }
        }
        match (self.phase(), self.status.step) {
            (Phase::Executing, Some(Step::SwitchApplication)) if self.is_switched() => {
                effects.extend(self.switch_effects(Direction::Forward));
            }
            (Phase::RollingBack, Some(Step::SwitchBack)) if self.is_given_up() => {
                effects.extend(self.confirm_flag());
            }
            (Phase::RollingBack, Some(Step::SwitchBack)) if self.is_switched() => {
                effects.extend(self.switch_effects(Direction::Rollback));
            }
            _ => {}
        }
        effects
    }
}
