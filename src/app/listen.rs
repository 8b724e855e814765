//! The whole service: opens, listens, reads Kafka, refreshes, until a signal or a fault ends it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::sync::mpsc;

use super::database::{Merged, Reload};
use super::reload::{Live, follow_files};
use super::security::Security;
use super::{Core, gauges};
use crate::audit::key::SigningKey;
use crate::audit::sealer::Sealer;
use crate::config::Config;
use crate::runtime::{Shutdown, chain, spawn};
use crate::serve::auth::Protocol;
use crate::serve::session::{QueryService, query_runtime};
use crate::serve::tls::sockets::Sockets;
use crate::serve::{self, Database, Endpoint, flight, http, pg};

/// How long the end waits for a refresh to stop.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// Where the service can be reached.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    pub pg: SocketAddr,
    pub flight: SocketAddr,
    pub http: SocketAddr,
}

/// Serves until `shutdown`; `ready` is called once queries are answered.
///
/// # Errors
/// When something cannot be opened, or when a part fails for good while running.
pub async fn serve(config: Config, shutdown: Shutdown, ready: impl FnOnce(Addresses)) -> Result<()> {
    // Ports first: a taken one should be told at once, not after the archive was read.
    let security = Security::load(&config)?;
    let exposure = security.exposure();
    let pg_listener = pg::listen((config.server.bind, config.server.pg_port).into(), exposure).await?;
    let flight_listener = flight::listen((config.server.bind, config.server.flight_port).into(), exposure).await?;
    let http = Endpoint::http((config.server.bind, config.server.http_port).into());
    let http_listener = http.listen_for(exposure).await?;
    let addresses = Addresses {
        pg: pg_listener.local_addr()?,
        flight: flight_listener.local_addr()?,
        http: http_listener.local_addr()?,
    };

    let mut core = Core::begin(config, shutdown.of_part()).await?;
    // Made here, so that it is there from the first start on, and what is wrong with it is told at once.
    let key = SigningKey::open_or_create(&core.config.seal_key_file())?;
    tracing::info!(public_key = %key.public(), "key of seals");
    let health = core.health.clone();
    let limits = serve::Limits {
        connections_max: core.config.server.connections_max,
        connections_reserved: core.config.server.connections_reserved,
        statement_timeout: core.config.query.timeout,
        ..serve::Limits::default()
    };
    let queries = QueryThreads::start(core.config.query.threads)?;
    let (ask, reloads) = mpsc::channel(1);
    let merged = Arc::new(Merged::new(&core).reloading(ask));
    let database: Arc<dyn Database> = Arc::<Merged>::clone(&merged);
    let metrics = Arc::clone(&core.metrics);
    let log = security.access_log(&core.config, &core.clock, &metrics, &health)?;
    let gate = security.gate(&database, &metrics, log)?;
    let tls = gate.tls().cloned();
    let service = QueryService::guarded(Arc::clone(&database), limits, queries.handle(), metrics, gate)?;

    let stop = shutdown.clone();
    spawn("http", &health, {
        let (service, health, shutdown) = (Arc::clone(&service), health.clone(), shutdown.clone());
        let http_listener = Sockets::of(http_listener, tls, Protocol::Http, &health, shutdown.clone());
        async move {
            if let Err(error) = http::serve_http(http_listener, service, shutdown, health.clone()).await {
                health.poison("http", error);
            }
        }
    });
    spawn("flight", &health, {
        let (service, health, shutdown) = (Arc::clone(&service), health.clone(), shutdown.clone());
        async move {
            if let Err(error) = flight::serve_flight(flight_listener, service, shutdown, health.clone()).await {
                health.poison("flight", error);
            }
        }
    });
    spawn("postgres", &health, {
        let (service, health, shutdown) = (Arc::clone(&service), health.clone(), shutdown.clone());
        async move {
            if let Err(error) = pg::serve_pg(pg_listener, service, shutdown, health.clone()).await {
                health.poison("postgres", error);
            }
        }
    });
    // Batch views can be read from here on.
    core.restore().await?;
    let running = core.start_intake().await?;
    tend(&core);
    ready(addresses);
    spawn("reload signal", &health, reload_on_signal(service));
    let ended = live(Live { core, running }, &merged, reloads, &stop).await;
    // What else is there ends with it.
    stop.trigger();
    if let Some(Live { core, running }) = ended {
        tokio::task::spawn_blocking(move || running.join()).await.context("intake did not end in order")?;
        drop(queries);
        // It stops by itself; nothing of it may touch the data directory once its lock is free.
        let _ = tokio::time::timeout(END_PATIENCE, core.refresher.pause()).await;
    }
    match health.failures().as_slice() {
        [] => Ok(()),
        failures => bail!("{}", failures.join("; ")),
    }
}

/// Until `process` ends, or a part of it for good; what is open then is to be closed.
async fn live(
    first: Live,
    merged: &Merged,
    mut reloads: mpsc::Receiver<Reload>,
    process: &Shutdown,
) -> Option<Live> {
    let mut live = first;
    loop {
        let asked = tokio::select! {
            () = live.core.shutdown.wait() => return Some(live),
            Some(asked) = reloads.recv() => asked,
        };
        let (health, before) = (live.core.health.clone(), live.core.shutdown.clone());
        match follow_files(live, merged, process).await {
            Ok((now, result)) => {
                if before.is_triggered() {
                    tend(&now.core);
                }
                // Who asked may have gone.
                drop(asked.send(result));
                live = now;
            }
            Err(error) => {
                health.poison("reload", format!("{error:#}"));
                return None;
            }
        }
    }
}

/// Starts what goes on beside intake for as long as `core` is open.
fn tend(core: &Core) {
    spawn("gauges", &core.health, gauges::keep(core));
    let interval_max = core.config.refresh.interval_max;
    let sealing = seal(core);
    core.refresher.spawn("seals", &core.health, sealing);
    let schedule = Arc::clone(&core.refresher).keep_schedule(Arc::clone(&core.cell), interval_max);
    spawn("refresh schedule", &core.health, schedule);
}

/// Reads the files in `sql/` and secrets again at each SIGHUP.
async fn reload_on_signal(service: Arc<QueryService>) {
    let hangup = tokio::signal::unix::SignalKind::hangup();
    let mut hangups = match tokio::signal::unix::signal(hangup) {
        Ok(hangups) => hangups,
        Err(error) => return tracing::warn!(%error, "SIGHUP is not listened to"),
    };
    while hangups.recv().await.is_some() {
        match service.reload().await {
            Ok(()) => tracing::info!("definitions read again"),
            Err(error) => tracing::error!(%error, "definitions stay as they were"),
        }
    }
}

/// Ends without waiting wherever it is dropped, also when the start fails: one Tokio runtime must not wait for the
/// threads of another.
struct QueryThreads(Option<tokio::runtime::Runtime>);

impl QueryThreads {
    fn start(threads: usize) -> Result<Self> {
        Ok(Self(Some(query_runtime(threads).context("cannot start the query threads")?)))
    }

    fn handle(&self) -> tokio::runtime::Handle {
        self.0.as_ref().expect("it is taken by drop alone").handle().clone()
    }
}

impl Drop for QueryThreads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Seals what is committed, now and then, until shutdown.
fn seal(core: &Core) -> impl Future<Output = ()> + Send + 'static {
    let (storage, clock, seals) = (core.storage().clone(), Arc::clone(&core.clock), Arc::clone(&core.seals));
    let (path, interval) = (core.config.seal_key_file(), core.config.audit.seal_interval);
    let shutdown = core.shutdown.clone();
    async move {
        match SigningKey::open_or_create(&path) {
            Ok(key) => Sealer { storage, key, clock }.run(seals, interval, shutdown).await,
            // Counting goes on without.
            Err(error) => tracing::error!(error = chain(&error), "the archive is not sealed"),
        }
    }
}
