//! Names of enum variants as users see them, without the `Debug` form.

/// Gives an enum `as_str` and `Display`: the variant's name, as in the API.
macro_rules! variant_names {
    ($type:ident: $($variant:ident)+) => {
        impl $type {
            /// Its name, as in the API.
            pub const fn as_str(self) -> &'static str {
                match self { $($type::$variant => stringify!($variant),)+ }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

pub(super) use variant_names;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::api::{CheckOutcome, DecisionKind, Occasion, Phase, Step, Task};

    #[test]
    fn names_are_those_of_the_api() {
        assert_eq!(json!(Step::BlockWrites), json!(Step::BlockWrites.as_str()));
        assert_eq!(json!(Phase::AwaitingApproval), json!(Phase::AwaitingApproval.as_str()));
        assert_eq!(json!(Task::RollbackWindow), json!(Task::RollbackWindow.as_str()));
        assert_eq!(json!(Occasion::DayReport), json!(Occasion::DayReport.to_string()));
        assert_eq!(json!(CheckOutcome::NoData), json!(CheckOutcome::NoData.to_string()));
        assert_eq!(json!(DecisionKind::Keep), json!(DecisionKind::Keep.to_string()));
    }
}
