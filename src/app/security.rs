//! From the settings to who may come in.

use std::sync::Arc;

use anyhow::{Result, ensure};

use crate::config::Config;
use crate::metrics::Metrics;
use crate::serve::Database;
use crate::serve::auth::passwords::Passwords;
use crate::serve::auth::{Exposure, Gate, Method};

/// What clients are held against, before there is anything to read.
#[derive(Debug)]
pub struct Security {
    method: Method,
    exposure: Exposure,
    passwords: Passwords,
}

impl Security {
    pub fn load(config: &Config) -> Result<Self> {
        let method = if config.auth.asks_for_passwords() { Method::Scram } else { Method::Trust };
        let passwords = Passwords::load(&config.passwords, config.auth.passwords_file())?;
        Ok(Self { method, exposure: Exposure::new(method, false, config.auth.allow_plain), passwords })
    }

    pub fn exposure(&self) -> Exposure {
        self.exposure
    }

    /// The gate to `database`.
    ///
    /// # Errors
    /// Where nobody could pass it.
    pub fn gate(self, database: &Arc<dyn Database>, metrics: &Arc<Metrics>) -> Result<Arc<Gate>> {
        let roles = database.roles();
        let gate = Gate::new(Arc::clone(database), self.method, self.passwords, Arc::clone(metrics));
        let somebody = roles.is_some_and(|roles| roles.iter().any(|role| role.login && gate.has_password(role)));
        ensure!(
            somebody || self.method == Method::Trust,
            "nobody could connect: `auth.method` is \"scram\" and no role in sql/roles has LOGIN and a password; declare \
             one with a verifier from `viewledger password`, or give a password in VIEWLEDGER_PASSWORD_<ROLE> or \
             `auth.passwords_file`"
        );
        Ok(Arc::new(gate))
    }
}
