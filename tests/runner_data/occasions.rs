//! Every occasion of a notice, by its default texts, on a real web server.

use std::collections::BTreeSet;

use credit_migration::api::{Audience, Occasion};
use serde_json::{Value, json};

use crate::notify::{Desk, event};

/// What only the team and support may read.
fn is_internal(audience: Audience) -> bool {
    match audience {
        Audience::Team | Audience::Support => true,
        Audience::Users | Audience::Social | Audience::StatusPage => false,
    }
}

#[tokio::test]
async fn each_occasion_reaches_its_audiences_with_texts_of_its_own() {
    let mut subjects = BTreeSet::new();
    for occasion in Occasion::ALL {
        let channels: Vec<Value> =
            Audience::ALL.iter().map(|a| event(&a.as_str().to_lowercase(), a.as_str(), "created")).collect();
        let mut desk = Desk::new(occasion.as_str(), json!(channels)).await;
        let path = desk.hook("created");
        let notice = desk.spec.inputs.notice.as_mut().unwrap();
        notice.starts_at = Some("2026-11-27T01:00:00Z".parse().unwrap());
        notice.expected_window_seconds = Some(90);
        let (result, sent) = desk.run().await;
        let audiences = occasion.audiences();
        let expected: Vec<String> =
            audiences.iter().map(|a| format!("{}: Delivered", a.as_str().to_lowercase())).collect();
        assert!(result.is_ok() && sent == expected, "{occasion}: {result:?}, {sent:?}");

        let requests = desk.office.web(&path);
        assert_eq!(requests.len(), audiences.len(), "{occasion}");
        for request in &requests {
            let (kind, data) = (&request["body"]["type"], &request["body"]["data"]);
            assert_eq!(kind, &json!(format!("io.creditmigration.notice.{occasion}")));
            let audience = audiences.iter().find(|a| data["audience"] == a.as_str()).unwrap();
            let (subject, body) = (data["subject"].as_str().unwrap(), data["body"].as_str().unwrap());
            let of = format!("{occasion} for {audience}: {subject}: {body}");
            assert!(!subject.is_empty() && !subject.contains("{{") && !body.contains("{{"), "{of}");
            // Text for occasions that have none of their own would come twice.
            assert!(subjects.insert((*audience, subject.to_owned())), "{of}");
            let internal = is_internal(*audience);
            assert_eq!(body.contains("errors <5%>"), internal, "{of}");
            assert_eq!(subject.contains("ALERT"), internal && occasion.is_alert(), "{of}");
            let has_contacts = data["contacts"].as_array().is_some_and(|contacts| !contacts.is_empty());
            assert_eq!(has_contacts, internal && occasion.is_alert(), "{of}");
        }
    }
}
