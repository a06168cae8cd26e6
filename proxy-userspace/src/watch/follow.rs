//! One kind of object, listed and then watched for as long as somebody listens.
//!
//! A broken watch is resumed where it ended; only when the server has forgotten that point (410) is everything listed
//! anew. Lists are streamed where the server can (memory on both sides), else read in pages.

use std::fmt::Write as _;
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use kube::Client;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::Status;
use kube::core::request::Request;
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::backoff::{Backoff, jitter};
use super::decode::{Object, Page};
use super::{Kind, Selection};
use crate::model::{Change, Event};

/// Objects per page of a list.
const PAGE: u32 = 500;
/// A watch is ended by the server after this long, or up to as much again, so that load balancers can even out.
const WATCH_SECONDS: u32 = 300;
const LONGEST_WATCH: Duration = Duration::from_secs(2 * WATCH_SECONDS as u64 + 30);
/// The server must have begun to answer, or to stream a list, within this.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Even when the server forgets our place again and again, it is not asked for everything more often than this.
const BETWEEN_LISTS: Duration = Duration::from_secs(5);
/// An API that the server does not have may appear with an upgrade.
const ABSENT_RETRY: Duration = Duration::from_mins(5);
/// After so many failures to resume in a row, the place itself is doubted.
const DOUBT_AFTER: u32 = 5;

type Events<K> = BoxStream<'static, kube::Result<WatchEvent<Object<K>>>>;

/// Why following came to a halt.
enum Halt {
    /// The server does not know our place any more, or went back in time.
    Expired,
    /// The server cannot stream lists.
    NoStreamingList,
    /// The server does not have the kind, or does not show it to us.
    Absent(String),
    Failed {
        reason: String,
        retry_after: Option<Duration>,
    },
    /// Nobody listens any more.
    Unheard,
}

struct Follower<K> {
    client: Client,
    selection: Selection,
    changes: Sender<Change>,
    /// Where to resume the watch; `None` before the first complete list.
    version: Option<String>,
    stream_lists: bool,
    listed: Option<Instant>,
    backoff: Backoff,
    failures: u32,
    kind: std::marker::PhantomData<fn() -> K>,
}

pub(super) async fn follow<K: Kind>(client: Client, selection: Selection, changes: Sender<Change>) {
    let mut follower = Follower::<K> {
        client,
        selection,
        changes,
        version: None,
        stream_lists: true,
        listed: None,
        backoff: Backoff::new(),
        failures: 0,
        kind: std::marker::PhantomData,
    };
    loop {
        let halted = follower.turn().await.err();
        if follower.recover(halted).await.is_err() {
            return;
        }
    }
}

/// The receiver of the changes is gone.
struct Unheard;

impl<K: Kind> Follower<K> {
    /// Lists if need be, then watches until the watch ends.
    async fn turn(&mut self) -> Result<(), Halt> {
        let events =
            if let Some(version) = &self.version { self.watch(version, false).await? } else { self.list().await? };
        self.forward(events).await
    }

    /// Sees to it that the next turn can do better.
    async fn recover(&mut self, halted: Option<Halt>) -> Result<(), Unheard> {
        match halted {
            None => debug!("{}: the watch ended, resuming", K::NAME),
            Some(Halt::Unheard) => return Err(Unheard),
            Some(Halt::Expired) => {
                info!("{}: the API server no longer knows where we were; listing anew", K::NAME);
                self.version = None;
            }
            Some(Halt::NoStreamingList) => {
                debug!("{}: the API server does not stream lists; reading pages", K::NAME);
                self.stream_lists = false;
            }
            Some(Halt::Absent(reason)) => {
                info!("{}: not available, taken as none: {reason}", K::NAME);
                self.send(Event::Reset(Vec::new())).await.map_err(|_| Unheard)?;
                sleep(ABSENT_RETRY + jitter(ABSENT_RETRY)).await;
            }
            Some(Halt::Failed { reason, retry_after }) => self.back_off(&reason, retry_after).await,
        }
        Ok(())
    }

    async fn back_off(&mut self, reason: &str, retry_after: Option<Duration>) {
        self.failures += 1;
        if self.failures.is_multiple_of(DOUBT_AFTER) {
            self.version = None;
        }
        let wait = self.backoff.after_failure(retry_after);
        warn!("{}: {reason}; what is known keeps serving, next try in {:.1} s", K::NAME, wait.as_secs_f32());
        tokio::select! {
            () = sleep(wait) => {}
            () = self.changes.closed() => {}
        }
    }

    /// Learns everything; gives the watch that goes on from there.
    async fn list(&mut self) -> Result<Events<K>, Halt> {
        self.spare_the_server().await;
        if self.stream_lists {
            return self.stream_list().await;
        }
        let version = self.page_list().await?;
        self.watch(&version, false).await
    }

    async fn spare_the_server(&mut self) {
        if let Some(listed) = self.listed {
            sleep_until(listed + BETWEEN_LISTS).await;
        }
    }

    /// Reads the whole list from a watch that begins with it; the watch goes on behind it.
    async fn stream_list(&mut self) -> Result<Events<K>, Halt> {
        let mut events = self.watch("", true).await.map_err(|halt| match halt {
            Halt::Failed { reason, .. } if reason.starts_with(REFUSED) => Halt::NoStreamingList,
            other => other,
        })?;
        self.send(Event::Begin).await?;
        let mut count = 0_usize;
        loop {
            // An API server that does not know streaming lists may start a plain watch: silence instead of a list.
            let Ok(event) = timeout(ANSWER_WITHIN, events.try_next()).await else { return Err(Halt::NoStreamingList) };
            match event.map_err(halt::<K>)? {
                Some(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                    count += 1;
                    self.listed_object(object).await?;
                }
                Some(WatchEvent::Bookmark(mark))
                    if mark.metadata.annotations.contains_key("k8s.io/initial-events-end") =>
                {
                    self.complete(count, mark.metadata.resource_version).await?;
                    return Ok(events);
                }
                Some(WatchEvent::Bookmark(_) | WatchEvent::Deleted(_)) => {}
                Some(WatchEvent::Error(status)) => return Err(refusal::<K>(&status)),
                None => return Err(failed("the connection ended in the middle of the list")),
            }
        }
    }

    /// Reads the list in pages; gives the version to watch from.
    async fn page_list(&mut self) -> Result<String, Halt> {
        let mut parameters = ListParams {
            label_selector: self.selection.labels.clone(),
            field_selector: self.selection.fields.clone(),
            limit: Some(PAGE),
            ..ListParams::default()
        };
        self.send(Event::Begin).await?;
        let mut count = 0_usize;
        loop {
            let request = Request::new(K::PATH).list(&parameters).map_err(|error| failed(error.to_string()))?;
            let page: Page<K> = in_time(self.client.request(request)).await?.map_err(halt::<K>)?;
            for object in page.items.unwrap_or_default() {
                count += 1;
                self.listed_object(object).await?;
            }
            parameters.continue_token = page.metadata.next.filter(|next| !next.is_empty());
            if parameters.continue_token.is_none() {
                let version = page.metadata.resource_version.unwrap_or_default();
                self.complete(count, version.clone()).await?;
                return Ok(version);
            }
        }
    }

    /// An object that cannot be read counts as absent: it is gone at the end of the list.
    async fn listed_object(&self, object: Object<K>) -> Result<(), Halt> {
        match readable::<K>(object) {
            Ok(object) => self.send(Event::Apply(object)).await,
            Err(()) => Ok(()),
        }
    }

    /// Only now is what the list did not mention known to be gone.
    async fn complete(&mut self, count: usize, version: String) -> Result<(), Halt> {
        if version.is_empty() {
            return Err(failed("the list has no metadata.resourceVersion; is this an API server?"));
        }
        info!("{}: {count} listed", K::NAME);
        self.listed = Some(Instant::now());
        self.failures = 0;
        self.send(Event::End).await?;
        self.version = Some(version);
        Ok(())
    }

    async fn watch(&self, version: &str, with_list: bool) -> Result<Events<K>, Halt> {
        let parameters = WatchParams {
            label_selector: self.selection.labels.clone(),
            field_selector: self.selection.fields.clone(),
            timeout: Some(WATCH_SECONDS + jitter(Duration::from_secs(WATCH_SECONDS.into())).as_secs() as u32),
            bookmarks: true,
            send_initial_events: with_list,
        };
        let request = Request::new(K::PATH).watch(&parameters, version).map_err(|error| failed(error.to_string()))?;
        let events = in_time(self.client.request_events(request)).await?.map_err(halt::<K>)?;
        Ok(events.boxed())
    }

    async fn forward(&mut self, mut events: Events<K>) -> Result<(), Halt> {
        loop {
            // The server ends every watch; when it does not, something between us swallowed its end.
            let Ok(event) = timeout(LONGEST_WATCH, events.try_next()).await else { return Ok(()) };
            let Some(event) = event.map_err(halt::<K>)? else { return Ok(()) };
            self.failures = 0;
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    self.advance(&object.resource_version)?;
                    let (namespace, name) = (object.namespace.clone(), object.name.clone());
                    // What cannot be read counts as absent: the same cluster state then always means the same tables.
                    let event = readable::<K>(object).map_or(Event::Delete { namespace, name }, Event::Apply);
                    self.send(event).await?;
                }
                WatchEvent::Deleted(Object { namespace, name, resource_version, .. }) => {
                    self.advance(&resource_version)?;
                    self.send(Event::Delete { namespace, name }).await?;
                }
                WatchEvent::Bookmark(mark) => self.advance(&mark.metadata.resource_version)?,
                WatchEvent::Error(status) => return Err(refusal::<K>(&status)),
            }
        }
    }

    /// Remembers where the watch is. A version below the last one means that the server's data was put back (a restored
    /// backup): what we know may be from a future that never happens.
    fn advance(&mut self, version: &str) -> Result<(), Halt> {
        let number = |text: &str| text.parse::<u64>().ok();
        let known = self.version.as_deref().and_then(number);
        if known.zip(number(version)).is_some_and(|(known, now)| now < known) {
            return Err(Halt::Expired);
        }
        if !version.is_empty() {
            self.version = Some(version.to_owned());
        }
        Ok(())
    }

    async fn send(&self, event: Event<K>) -> Result<(), Halt> {
        self.changes.send(K::change(event)).await.map_err(|_| Halt::Unheard)
    }
}

fn readable<K: Kind>(object: Object<K>) -> Result<K, ()> {
    object.content.map_err(|error| {
        warn!(namespace = object.namespace, name = object.name, "{}: skipped, it cannot be read: {error}", K::NAME);
    })
}

async fn in_time<T>(answer: impl Future<Output = T>) -> Result<T, Halt> {
    timeout(ANSWER_WITHIN, answer).await.map_err(|_| failed(format!("no answer within {} s", ANSWER_WITHIN.as_secs())))
}

fn failed(reason: impl Into<String>) -> Halt {
    Halt::Failed { reason: reason.into(), retry_after: None }
}

fn halt<K: Kind>(error: kube::Error) -> Halt {
    match error {
        kube::Error::Api(status) => refusal::<K>(&status),
        error => failed(chain(&error)),
    }
}

/// How the reason starts when the server understood the request and will never accept it.
const REFUSED: &str = "refused as invalid";

/// What the server's own words mean.
fn refusal<K: Kind>(status: &Status) -> Halt {
    let asked = status.details.as_ref().map(|details| details.retry_after_seconds).filter(|seconds| *seconds > 0);
    let retry_after = asked.map(|seconds| Duration::from_secs(seconds.into()));
    let said = format!("{} ({})", status.message, status.code);
    match status.code {
        410 => Halt::Expired,
        403 | 404 if K::OPTIONAL => Halt::Absent(said),
        403 => failed(format!("{said}; the agent needs get, list and watch on {} (role system:node-proxier)", K::NAME)),
        401 => failed(format!("{said}; the credentials are not accepted")),
        400 | 405 | 406 | 415 | 422 => failed(format!("{REFUSED}: {said}")),
        _ => Halt::Failed { reason: said, retry_after },
    }
}

/// An error with everything behind it: the outermost words of a client error say the least.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            // Writing to a String cannot fail.
            let _ = write!(text, ": {words}");
        }
        source = cause.source();
    }
    text
}
