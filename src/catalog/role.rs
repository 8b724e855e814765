//! Roles: who may connect, and what each may read, change and do. Declared by PostgreSQL's own statements in `sql/roles`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Fault;
use super::verifier::Verifier;

pub mod read;

use self::read::{Subject, Told};

/// Schemas that describe the database: every role reads them, as in PostgreSQL.
const OPEN_SCHEMAS: [&str; 2] = ["pg_catalog", "information_schema"];
/// But for this table, in which PostgreSQL has passwords.
const CLOSED_TABLE: &str = "pg_authid";

/// Roles that exist without being declared, to be members of.
const PREDEFINED: [&str; 1] = [RESERVED_CONNECTIONS];

/// Members of it have connections that are kept for them.
pub const RESERVED_CONNECTIONS: &str = "pg_use_reserved_connections";

/// What may be done with a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privilege {
    Select,
    Insert,
    Update,
    Delete,
    Truncate,
    /// `REFRESH` of a materialized view.
    Maintain,
}

impl Privilege {
    pub const ALL: [Self; 6] =
        [Self::Select, Self::Insert, Self::Update, Self::Delete, Self::Truncate, Self::Maintain];

    /// As it is written in `GRANT`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Select => "SELECT",
            Self::Insert => "INSERT",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Truncate => "TRUNCATE",
            Self::Maintain => "MAINTAIN",
        }
    }
}

/// Some of the privileges.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Privileges(u8);

impl Privileges {
    #[must_use]
    pub fn with(self, privilege: Privilege) -> Self {
        Self(self.0 | 1 << privilege as u8)
    }

    #[must_use]
    pub fn and(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    pub fn has(self, privilege: Privilege) -> bool {
        self.0 & 1 << privilege as u8 != 0
    }
}

/// Everything that was granted to a role, by itself or through the roles that it is in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Rights {
    schemas: BTreeMap<String, InSchema>,
    functions: BTreeSet<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct InSchema {
    /// On every table that is in it, or will be.
    every: Privileges,
    tables: BTreeMap<String, Privileges>,
    create: bool,
}

impl Rights {
    fn add(&mut self, other: &Self) {
        for (schema, theirs) in &other.schemas {
            let mine = self.schemas.entry(schema.clone()).or_default();
            mine.every = mine.every.and(theirs.every);
            mine.create |= theirs.create;
            for (table, privileges) in &theirs.tables {
                let held = mine.tables.entry(table.clone()).or_default();
                *held = held.and(*privileges);
            }
        }
        self.functions.extend(other.functions.iter().cloned());
    }

    fn grant(&mut self, subject: &Subject, privileges: Privileges) {
        match subject {
            Subject::Every { schema } => {
                let held = self.schemas.entry(schema.clone()).or_default();
                held.every = held.every.and(privileges);
            }
            Subject::Table { schema, table } => {
                let tables = &mut self.schemas.entry(schema.clone()).or_default().tables;
                let held = tables.entry(table.clone()).or_default();
                *held = held.and(privileges);
            }
            Subject::Create { schema } => self.schemas.entry(schema.clone()).or_default().create = true,
            Subject::Function { name } => drop(self.functions.insert(name.clone())),
        }
    }
}

/// Who connects, or what those who connect are members of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    pub name: String,
    /// Whether a client may connect as this role.
    pub login: bool,
    /// None where there is no limit of its own.
    pub connections_max: Option<usize>,
    pub verifier: Option<Verifier>,
    /// The roles that it is in, directly or through others.
    pub member_of: BTreeSet<String>,
    rights: Rights,
}

impl Role {
    /// Whether it may do this with a table, or with every table of its schema.
    pub fn may(&self, privilege: Privilege, schema: &str, table: &str) -> bool {
        if privilege == Privilege::Select && OPEN_SCHEMAS.contains(&schema) && table != CLOSED_TABLE {
            return true;
        }
        self.rights.schemas.get(schema).is_some_and(|held| {
            held.every.has(privilege) || held.tables.get(table).is_some_and(|table| table.has(privilege))
        })
    }

    /// Whether it may define, change and drop materialized views there.
    pub fn may_create_in(&self, schema: &str) -> bool {
        self.rights.schemas.get(schema).is_some_and(|held| held.create)
    }

    pub fn may_execute(&self, function: &str) -> bool {
        self.rights.functions.contains(function)
    }

    /// Whether connections are kept for it.
    pub fn has_reserved_connections(&self) -> bool {
        self.member_of.contains(RESERVED_CONNECTIONS)
    }
}

/// What a statement in a file grants on, to be held against what there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantedOn {
    pub schema: String,
    /// None where it is the whole schema.
    pub table: Option<String>,
    at: Place,
}

/// Where a statement stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub file: String,
    pub line: u64,
    pub column: u64,
}

impl Place {
    pub fn fault(&self, reason: impl Into<String>) -> Fault {
        Fault { file: self.file.clone(), line: self.line, column: self.column, reason: reason.into() }
    }
}

impl GrantedOn {
    pub fn fault(&self, reason: impl Into<String>) -> Fault {
        self.at.fault(reason)
    }
}

/// Every role. Without any, nothing is checked: there is nobody to check it for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Roles {
    roles: BTreeMap<String, Arc<Role>>,
    granted_on: Vec<GrantedOn>,
}

impl Roles {
    /// Puts together what all files say; all faults at once.
    pub fn of(statements: Vec<(Place, Told)>) -> Result<Self, Vec<Fault>> {
        let (mut roles, mut faults) = (BTreeMap::<String, Role>::new(), Vec::new());
        let (mut members, mut grants) = (Vec::new(), Vec::new());
        let mut declared_at = BTreeMap::new();
        for (at, told) in statements {
            match told {
                Told::Role(role) => match declared_at.get(&role.name) {
                    Some(other) => {
                        let Place { file, line, .. } = other;
                        faults.push(at.fault(format!("role {} is declared already, at {file}:{line}", role.name)));
                    }
                    None => {
                        declared_at.insert(role.name.clone(), at);
                        roles.insert(role.name.clone(), role);
                    }
                },
                Told::Member { of, roles } => members.push((at, of, roles)),
                Told::Grant { privileges, subjects, roles } => grants.push((at, privileges, subjects, roles)),
            }
        }
        let unknown = |at: &Place, name: &str| at.fault(format!("role \"{name}\" does not exist"));
        let mut direct: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (at, of, names) in members {
            for name in &names {
                if !roles.contains_key(name) {
                    faults.push(unknown(&at, name));
                }
                for group in &of {
                    if !roles.contains_key(group) && !PREDEFINED.contains(&group.as_str()) {
                        faults.push(unknown(&at, group));
                    } else if group == name || groups(&direct, group).contains(name) {
                        faults.push(at.fault(format!("role \"{name}\" would be a member of itself")));
                    } else {
                        direct.entry(name.clone()).or_default().insert(group.clone());
                    }
                }
            }
        }
        let mut granted_on = Vec::new();
        for (at, privileges, subjects, names) in grants {
            for name in &names {
                match roles.get_mut(name) {
                    Some(role) => subjects.iter().for_each(|subject| role.rights.grant(subject, privileges)),
                    None => faults.push(unknown(&at, name)),
                }
            }
            granted_on.extend(subjects.into_iter().filter_map(|subject| match subject {
                Subject::Every { schema } | Subject::Create { schema } => {
                    Some(GrantedOn { schema, table: None, at: at.clone() })
                }
                Subject::Table { schema, table } => Some(GrantedOn { schema, table: Some(table), at: at.clone() }),
                Subject::Function { .. } => None,
            }));
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let own: BTreeMap<String, Rights> =
            roles.iter().map(|(name, role)| (name.clone(), role.rights.clone())).collect();
        for (name, role) in &mut roles {
            role.member_of = groups(&direct, name);
            role.member_of.iter().filter_map(|group| own.get(group)).for_each(|rights| role.rights.add(rights));
        }
        let roles = roles.into_iter().map(|(name, role)| (name, Arc::new(role))).collect();
        Ok(Self { roles, granted_on })
    }

    pub fn is_empty(&self) -> bool {
        self.roles.is_empty()
    }

    pub fn get(&self, name: &str) -> Option<&Arc<Role>> {
        self.roles.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Role>> {
        self.roles.values()
    }

    pub fn granted_on(&self) -> &[GrantedOn] {
        &self.granted_on
    }
}

/// All roles that `role` is in, as far as `direct` says.
fn groups(direct: &BTreeMap<String, BTreeSet<String>>, role: &str) -> BTreeSet<String> {
    let (mut found, mut waiting) = (BTreeSet::new(), vec![role]);
    while let Some(role) = waiting.pop() {
        for group in direct.get(role).into_iter().flatten() {
            if found.insert(group.clone()) {
                waiting.push(group);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests;
