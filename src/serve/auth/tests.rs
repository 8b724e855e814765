#![allow(clippy::unwrap_used)]
use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, MemoryCatalogProvider};
use datafusion::prelude::SessionContext;

use super::*;
use crate::catalog::role::{Roles, read};
use crate::serve::{Readiness, RefreshError, RefreshScope, ServeError};

#[derive(Debug)]
struct OfRoles(Option<Arc<Roles>>);

#[async_trait]
impl Database for OfRoles {
    fn pin(&self) -> Result<Arc<dyn CatalogProvider>, ServeError> {
        Ok(Arc::new(MemoryCatalogProvider::new()))
    }

    fn roles(&self) -> Option<Arc<Roles>> {
        self.0.clone()
    }

    fn session(&self) -> SessionContext {
        SessionContext::new()
    }

    async fn refresh(&self, _: Option<&str>, _: RefreshScope) -> Result<String, RefreshError> {
        Err(RefreshError::Cancelled)
    }

    fn comment(&self, _: &str, _: &str) -> Option<String> {
        None
    }

    fn readiness(&self) -> Readiness {
        Readiness::default()
    }
}

const ORIGIN: Origin = Origin { address: None, protocol: Protocol::Flight, tls: false };

fn gate(method: Method, roles: Option<&str>) -> Gate {
    let roles = roles.map(|text| Arc::new(Roles::of(read::statements("r.sql", text).unwrap()).unwrap()));
    Gate::new(Arc::new(OfRoles(roles)), method, Passwords::default(), Arc::new(Metrics::new()))
}

fn declared(password: &str) -> String {
    let verifier = passwords::new_verifier(password).reveal();
    format!(
        "CREATE ROLE ana LOGIN CONNECTION LIMIT 1 PASSWORD '{verifier}'; CREATE ROLE group_only; CREATE ROLE bare LOGIN;"
    )
}

#[test]
fn without_roles_anybody_may_enter_and_with_them_only_who_is_declared() {
    let open = gate(Method::Trust, None);
    assert_eq!(open.enter(open.trusted("whoever").unwrap(), ORIGIN).unwrap().user, "whoever");
    let closed = gate(Method::Trust, Some(&declared("x")));
    let enter = |user| closed.enter(closed.trusted(user).unwrap(), ORIGIN);
    let unknown = enter("whoever").unwrap_err();
    assert_eq!((unknown.state, unknown.message.as_str()), (SqlState("28000"), "role \"whoever\" does not exist"));
    assert_eq!(unknown.hint.as_deref(), Some("connect as one of: ana, bare"));
    assert_eq!(enter("group_only").unwrap_err().message, "role \"group_only\" is not permitted to log in");
    let first = enter("ana").unwrap();
    assert_eq!(enter("ana").unwrap_err().state, SqlState("53300"));
    drop(first);
    assert!(enter("ana").is_ok());
}

#[tokio::test]
async fn passwords_are_checked_and_names_cannot_be_probed() {
    let gate = gate(Method::Scram, Some(&declared("secret")));
    assert!(gate.trusted("ana").is_err());
    assert!(gate.check_password("ana", "secret", ORIGIN).await.is_ok());
    assert!(gate.check_password("ana", "secret", ORIGIN).await.is_ok(), "known from before");
    for user in ["ana", "bare", "nobody"] {
        let refused = gate.check_password(user, "Secret", ORIGIN).await.unwrap_err();
        assert_eq!(refused.state, SqlState("28P01"));
        assert_eq!(refused.message, format!("password authentication failed for user \"{user}\""));
    }
    // The same question twice has the same answer, as with a role that exists.
    let salt = |user| {
        let (_, answer) = gate.challenge(user, Mechanism::Plain, None, b"n,,n=,r=a").unwrap();
        answer.split(',').nth(1).unwrap().to_owned()
    };
    assert_eq!(salt("nobody"), salt("nobody"));
    assert_ne!(salt("nobody"), salt("somebody"));
    assert_eq!(salt("nobody").len(), salt("ana").len());
}

#[test]
fn the_header_is_read_or_is_none() {
    assert_eq!(basic("Basic YW5hOnNlY3JldA=="), Some(("ana".to_owned(), "secret".to_owned())));
    assert_eq!(basic("basic YW5hOg"), Some(("ana".to_owned(), String::new())));
    for wrong in ["", "Basic", "Basic !", "Basic Og==", "Basic OnB3", "Digest x", "Basic YW5h"] {
        assert_eq!(basic(wrong), None, "{wrong}");
    }
}

#[test]
fn other_machines_are_let_in_only_when_they_prove_who_they_are() {
    assert_eq!(Exposure::new(Method::Trust, true, true), Exposure::Loopback);
    assert_eq!(Exposure::new(Method::Scram, false, false), Exposure::Loopback);
    assert_eq!(Exposure::new(Method::Scram, true, false), Exposure::Network);
    assert_eq!(Exposure::new(Method::Scram, false, true), Exposure::Network);
}
