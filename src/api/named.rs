//! Names of enums' variants, as users see them: those of the CRD.

/// Gives an enum `ALL`, `as_str` and `Display`, in the order of the variants. A variant that is serialized under a
/// different name has this name after `=`.
macro_rules! named {
    ($type:ident: $($variant:ident $(= $name:literal)?),+ $(,)?) => {
        impl $type {
            /// Every variant, in the order of its declaration.
            pub const ALL: &[$type] = &[$($type::$variant),+];

            /// Its name, as it is serialized.
            pub const fn as_str(self) -> &'static str {
                match self { $($type::$variant => named!(@name $variant $($name)?),)+ }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
    (@name $variant:ident $name:literal) => { $name };
    (@name $variant:ident) => { stringify!($variant) };
}

pub(crate) use named;

#[cfg(test)]
mod tests {
    use crate::api::*;

    #[test]
    fn a_name_is_what_is_serialized() {
        fn check<T: serde::Serialize + Copy>(all: &[T], name: impl Fn(T) -> &'static str) {
            for variant in all {
                assert_eq!(serde_json::to_value(variant).unwrap(), name(*variant));
            }
        }
        check(Phase::ALL, Phase::as_str);
        check(Step::ALL, Step::as_str);
        check(Task::ALL, Task::as_str);
        check(StepState::ALL, StepState::as_str);
        check(RunPhase::ALL, RunPhase::as_str);
        check(WorkloadKind::ALL, WorkloadKind::as_str);
        check(Writes::ALL, Writes::as_str);
        check(WindowState::ALL, WindowState::as_str);
        check(WindowCommand::ALL, WindowCommand::as_str);
        check(SafeguardKind::ALL, SafeguardKind::as_str);
        check(ObstacleKind::ALL, ObstacleKind::as_str);
        check(LeftOutKind::ALL, LeftOutKind::as_str);
        check(LockMode::ALL, LockMode::as_str);
        check(CheckOutcome::ALL, CheckOutcome::as_str);
        check(DecisionKind::ALL, DecisionKind::as_str);
        check(Occasion::ALL, Occasion::as_str);
        check(Audience::ALL, Audience::as_str);
        check(NoticeState::ALL, NoticeState::as_str);
        check(DeliveryState::ALL, DeliveryState::as_str);
        check(ContactRole::ALL, ContactRole::as_str);
        check(Weekday::ALL, Weekday::as_str);
        check(Activity::ALL, Activity::as_str);
        check(WorkUnit::ALL, WorkUnit::as_str);
    }
}
