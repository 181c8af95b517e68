//! What a run has beside the pipeline: receivers, telemetry, the watchdog, the watch for pod names.

use std::{borrow::Cow, path::Path, sync::Arc, time::Instant};

#[cfg(not(feature = "kubernetes"))]
use anyhow::anyhow;
use anyhow::{Context, Result};
use tokio::{runtime::Handle, sync::watch, time::timeout_at};

#[cfg(feature = "kubernetes")]
use crate::enrich::kubernetes;
use crate::{
    account::Account,
    app::run::{PROC, Started},
    config::{
        environment,
        settings::{Destination, Settings},
    },
    correlate::Correlator,
    enrich::{host as host_resource, pods::Pods},
    export::Exporter,
    model::{resource::ResourceValue, signal::Signal},
    otlp::client::Client,
    receiver::{Backends, Receivers, metrics::Traffic, peer_process::find_sender},
    telemetry::{self, Telemetry, admin::Admin, metrics::Sources, systemd::Notifier},
};

/// What runs on the runtime beside the pipeline.
pub(super) struct Services {
    stop: watch::Sender<bool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    telemetry: Vec<Telemetry>,
}

impl Services {
    pub(super) fn new() -> Self {
        let (stop, _) = watch::channel(false);
        Self { stop, tasks: Vec::new(), telemetry: Vec::new() }
    }

    /// Ends when the services are to stop.
    fn stopped(&self) -> impl Future<Output = ()> + use<> {
        let mut stopped = self.stop.subscribe();
        async move {
            // The sender's end means the same.
            drop(stopped.wait_for(|stop| *stop).await);
        }
    }

    pub(super) async fn start_receivers(
        &mut self,
        started: &Started<'_>,
        correlator: &Arc<Correlator>,
    ) -> Result<Option<Arc<Traffic>>> {
        let settings = started.settings;
        if settings.correlation.grpc.is_none() && settings.correlation.http.is_none() {
            return Ok(None);
        }
        let receivers = receivers(settings, started.destinations(), correlator).await?;
        let traffic = receivers.traffic();
        self.tasks.push(tokio::spawn(receivers.run(self.stopped())));
        Ok(Some(traffic))
    }

    pub(super) async fn start_telemetry(&mut self, started: &Started<'_>, sources: Arc<Sources>) -> Result<()> {
        if let Some(address) = started.settings.admin {
            let admin = Admin::bind(address, Arc::clone(&sources)).await?;
            tracing::info!(event = "admin_listening", address = %admin.address()?, "admin endpoint listening");
            self.tasks.push(tokio::spawn(admin.run(self.stopped())));
        }
        let fixed = static_attributes(started.settings).into_iter();
        let fixed = fixed.map(|(name, value)| (Cow::Owned(name), ResourceValue::Text(value)));
        let resource = telemetry::own_resource(host_resource::attributes(Path::new(PROC)).into_iter().chain(fixed));
        for destination in started.destinations() {
            if started.settings.export.signals_of(destination).metrics {
                let telemetry = Telemetry::start(destination, &sources, resource.clone(), None, &Handle::current())?;
                self.telemetry.push(telemetry);
            }
        }
        Ok(())
    }

    /// Feeds the service manager's watchdog.
    pub(super) fn spawn_watchdog(&mut self, notifier: &Arc<Notifier>, account: &Arc<Account>, runtime: &Handle) {
        let watchdog = Arc::clone(notifier).run_watchdog(Arc::clone(account));
        let mut stopped = self.stop.subscribe();
        self.tasks.push(runtime.spawn(async move {
            tokio::select! {
                () = watchdog => {}
                _ = stopped.wait_for(|stop| *stop) => {}
            }
        }));
    }

    /// Watches the names of this node's pods, where that is configured.
    #[cfg(feature = "kubernetes")]
    pub(super) async fn watch_pods(&mut self, settings: &Settings) -> Result<Option<Arc<Pods>>> {
        let Some(kubernetes) = &settings.enrichment.kubernetes else { return Ok(None) };
        let config = kubernetes::cluster().await?;
        let pods = Arc::new(Pods::default());
        let (watched, node) = (Arc::clone(&pods), kubernetes.node_name.clone());
        let mut stopped = self.stop.subscribe();
        self.tasks.push(tokio::spawn(async move {
            tokio::select! {
                ended = kubernetes::watch(config, &node, &watched) => {
                    if let Err(error) = ended {
                        tracing::error!(event = "pod_watch_stopped", %error, "pod watch stopped, resets are exported without pod names");
                    }
                }
                _ = stopped.wait_for(|stop| *stop) => {}
            }
        }));
        Ok(Some(pods))
    }

    /// This program was built without the Kubernetes API.
    #[cfg(not(feature = "kubernetes"))]
    pub(super) async fn watch_pods(&mut self, settings: &Settings) -> Result<Option<Arc<Pods>>> {
        match settings.enrichment.kubernetes {
            None => Ok(None),
            Some(_) => Err(anyhow!(
                "enrichment.kubernetes needs a program built with `--features kubernetes`; without it leave the key out"
            )),
        }
    }

    /// Sends the last metrics, to all destinations at once, and stops the rest.
    pub(super) async fn stop(self, deadline: Instant) {
        self.stop.send_replace(true);
        let telemetry = self.telemetry.into_iter().map(|telemetry| tokio::spawn(telemetry.shutdown(deadline)));
        for task in telemetry.collect::<Vec<_>>().into_iter().chain(self.tasks) {
            match timeout_at(deadline.into(), task).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => tracing::error!(event = "service_failed", "a service panicked"),
                Err(_) => tracing::warn!(event = "service_stuck", "a service did not end in time"),
            }
        }
    }
}

async fn receivers(
    settings: &Settings,
    destinations: &[Destination],
    correlator: &Arc<Correlator>,
) -> Result<Receivers> {
    let mut clients = Vec::new();
    for destination in destinations {
        let client = Client::for_forwarding(destination)
            .with_context(|| format!("export.otlp {} cannot take what applications send", destination.endpoint))?;
        clients.push((destination, client));
    }
    let first = clients.first().context(
        "correlation.otlp_receiver passes on to export.otlp, and that has no destination: give it an endpoint",
    )?;
    // What nobody wants of ours may be an application's: then the first says what it thinks of it.
    let takes = |signal| {
        let takes = clients.iter().find(|(destination, _)| settings.export.signals_of(destination).has(signal));
        takes.unwrap_or(first)
    };
    let onward = takes(Signal::Traces).0;
    let onward = onward.signal_endpoints.traces.as_ref().unwrap_or(&onward.endpoint);
    let of_signal = Backends::new(|signal| takes(signal).1.clone());
    let receivers =
        Receivers::listen(&settings.correlation, of_signal, Arc::clone(correlator), Arc::new(find_sender)).await?;
    for address in receivers.addresses() {
        tracing::info!(event = "receiver_listening", %address, onward, "OTLP receiver listening, forwarding to the backend");
    }
    Ok(receivers)
}

pub(super) async fn flush(exporters: Vec<Exporter>, deadline: Instant) {
    let ends: Vec<_> = exporters.into_iter().map(|exporter| tokio::spawn(exporter.shutdown(deadline))).collect();
    for end in ends {
        if end.await.is_err() {
            tracing::error!(event = "exporter_failed", "an exporter panicked");
        }
    }
}

/// The resource attributes of everything that is exported: the file's, and those of the environment that it does not name.
pub(super) fn static_attributes(settings: &Settings) -> Vec<(String, String)> {
    let mut attributes = settings.enrichment.resource.clone();
    for (name, value) in environment::static_attributes(|name| std::env::var(name).ok()) {
        if attributes.iter().all(|(known, _)| *known != name) {
            attributes.push((name, value));
        }
    }
    attributes
}
