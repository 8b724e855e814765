//! From the settings to who may come in, and what is told of them.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use crate::config::Config;
use crate::metrics::Metrics;
use crate::runtime::{Clock, Health};
use crate::serve::Database;
use crate::serve::access_log::{AccessLog, Bounds};
use crate::serve::auth::passwords::Passwords;
use crate::serve::auth::queue::QueueBounds;
use crate::serve::auth::{Exposure, Gate, Method};
use crate::serve::tls::{Plain, Tls};

/// What clients are held against, before there is anything to read.
#[derive(Debug)]
pub struct Security {
    method: Method,
    exposure: Exposure,
    passwords: Passwords,
    tls: Option<Arc<Tls>>,
    queues: QueueBounds,
}

impl Security {
    pub fn load(config: &Config) -> Result<Self> {
        let method = if config.auth.asks_for_passwords() { Method::Scram } else { Method::Trust };
        let passwords = Passwords::load(&config.passwords, config.auth.passwords_file())?;
        let plain = match (config.tls.required, config.auth.allow_plain) {
            (true, _) => Plain::Never,
            (false, true) => Plain::Always,
            (false, false) => Plain::FromLoopback,
        };
        let tls = match config.tls.files() {
            Some((certificate, key)) => Some(Arc::new(Tls::load(certificate, key, plain)?)),
            None => None,
        };
        let exposure = Exposure::new(method, tls.is_some(), config.auth.allow_plain);
        let queues = QueueBounds {
            running_max: config.query.running_per_role_max,
            waiting_max: config.query.waiting_per_role_max,
            patience: config.query.waiting_timeout,
        };
        Ok(Self { method, exposure, passwords, tls, queues })
    }

    pub fn exposure(&self) -> Exposure {
        self.exposure
    }

    /// None where it is switched off.
    pub fn access_log(
        &self,
        config: &Config,
        clock: &Arc<dyn Clock>,
        metrics: &Arc<Metrics>,
        health: &Health,
    ) -> Result<Option<Arc<AccessLog>>> {
        let audit = &config.audit;
        if !audit.access_log {
            return Ok(None);
        }
        let bounds = Bounds {
            days: audit.access_log_days,
            bytes: audit.access_log_bytes_max as u64,
            queue: audit.access_log_queue_max,
        };
        let dir = config.storage.data_dir.join("access");
        let log = AccessLog::open(&dir, bounds, Arc::clone(clock), Arc::clone(metrics), health);
        Ok(Some(log.with_context(|| format!("cannot open the access log in {}", dir.display()))?))
    }

    /// The gate to `database`.
    ///
    /// # Errors
    /// Where nobody could pass it.
    pub fn gate(
        self,
        database: &Arc<dyn Database>,
        metrics: &Arc<Metrics>,
        log: Option<Arc<AccessLog>>,
    ) -> Result<Arc<Gate>> {
        let roles = database.roles();
        let gate = Gate::new(Arc::clone(database), self.method, self.passwords, Arc::clone(metrics))
            .with_queues(self.queues)
            .with_tls(self.tls)
            .with_log(log);
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
