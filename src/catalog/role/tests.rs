#![allow(clippy::unwrap_used)]
use super::*;

const VERIFIER: &str = "SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0c2FsdA==$FOoTCMbJzxbNAMpVEjOlHPwOhTAsOkkVKaRwPPqUuIk=:\
     FOoTCMbJzxbNAMpVEjOlHPwOhTAsOkkVKaRwPPqUuIk=";

fn roles(text: &str) -> Result<Roles, Vec<String>> {
    let told = read::statements("r.sql", text).map_err(|fault| vec![fault.to_string()])?;
    Roles::of(told).map_err(|faults| faults.iter().map(ToString::to_string).collect())
}

#[test]
fn rights_are_those_of_the_role_and_of_all_it_is_in() {
    let text = format!(
        "-- Reads.
         CREATE ROLE readers;
         GRANT SELECT ON ALL TABLES IN SCHEMA public, raw TO readers;
         CREATE ROLE writers;
         GRANT readers TO writers;
         GRANT insert, UPDATE ON TABLE rates, \"Odd\".\"Name\" TO writers;
         CREATE ROLE \"Ada\" WITH LOGIN CONNECTION LIMIT 3 PASSWORD '{VERIFIER}';
         GRANT writers, pg_use_reserved_connections TO \"Ada\";
         GRANT CREATE ON SCHEMA public TO \"Ada\"; GRANT EXECUTE ON FUNCTION pg_reload_conf() TO \"Ada\";
         CREATE ROLE guest LOGIN CONNECTION LIMIT -1;"
    );
    let roles = roles(&text).unwrap();
    let ada = roles.get("Ada").unwrap();
    assert_eq!((ada.login, ada.connections_max, ada.verifier.is_some()), (true, Some(3), true));
    assert!(ada.may(Privilege::Select, "raw", "anything") && ada.may(Privilege::Update, "public", "rates"));
    assert!(ada.may(Privilege::Insert, "Odd", "Name") && !ada.may(Privilege::Insert, "Odd", "name"));
    assert!(!ada.may(Privilege::Delete, "public", "rates") && !ada.may(Privilege::Insert, "public", "other"));
    assert!(
        !ada.may(Privilege::Select, "system", "settings") && ada.may(Privilege::Select, "pg_catalog", "pg_class")
    );
    assert!(!ada.may(Privilege::Select, "pg_catalog", "pg_authid"));
    assert!(ada.may_create_in("public") && !ada.may_create_in("raw") && ada.may_execute("pg_reload_conf"));
    assert!(ada.has_reserved_connections());
    let guest = roles.get("guest").unwrap();
    assert!(guest.login && !guest.may(Privilege::Select, "public", "rates") && guest.connections_max.is_none());
    let readers = roles.get("readers").unwrap();
    assert!(!readers.login && !readers.may(Privilege::Insert, "public", "rates"));
    assert_eq!(roles.granted_on().len(), 5);
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    for (text, expected) in [
        ("CREATE ROLE a; CREATE ROLE a;", "r.sql:1:16: role a is declared already, at r.sql:1"),
        ("CREATE ROLE a; GRANT a TO b", "r.sql:1:16: role \"b\" does not exist"),
        ("CREATE ROLE a;\nGRANT b TO a", "r.sql:2:1: role \"b\" does not exist"),
        ("CREATE ROLE a; CREATE ROLE b; GRANT a TO b; GRANT b TO a", "role \"a\" would be a member of itself"),
        ("GRANT SELECT ON t TO a", "r.sql:1:1: role \"a\" does not exist"),
        ("CREATE ROLE a SUPERUSER", "r.sql:1:15: a role takes LOGIN, CONNECTION LIMIT n and PASSWORD"),
        ("CREATE ROLE a LOGIN PASSWORD 'secret'", "r.sql:1:30: this is not a verifier"),
        ("CREATE ROLE a PASSWORD", "expected a verifier in quotes"),
        ("CREATE ROLE a CONNECTION LIMIT many", "a connection limit is a number"),
        ("CREATE ROLE a CONNECTION LIMIT 1 1", "a role takes"),
        ("CREATE ROLE pg_monitor", "role name \"pg_monitor\" is reserved"),
        ("CREATE ROLE", "expected a role's name"),
        ("CREATE ROLE 1", "expected a role's name, found 1"),
        ("CREATE ROLE a; GRANT REFERENCES ON t TO a", "on a table there are SELECT, INSERT"),
        ("CREATE ROLE a; GRANT SELECT (x) ON t TO a", "columns have no privileges of their own"),
        ("CREATE ROLE a; GRANT SELECT ON t", "expected TO"),
        ("CREATE ROLE a; GRANT SELECT ON t TO a WITH GRANT OPTION", "expected ; after the statement, found WITH"),
        ("CREATE ROLE a; GRANT EXECUTE ON FUNCTION now() TO a", "function now needs no right"),
        ("CREATE ROLE a; GRANT EXECUTE ON FUNCTION pg_reload_conf TO a", "write pg_reload_conf()"),
        ("DROP ROLE a", "only CREATE ROLE and GRANT are understood here"),
        ("CREATE ROLE 'a", "Unterminated string literal"),
    ] {
        let found = roles(text).unwrap_err().join("\n");
        assert!(found.contains(expected), "{text}: {found}");
        assert!(!found.contains("secret"), "{text}: {found}");
    }
}
