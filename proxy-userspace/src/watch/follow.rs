//! One kind of object, listed and then watched for as long as somebody listens.
//!
//! A broken watch is resumed where it ended; only when the server has forgotten that point (410) is everything listed
//! anew. Lists are streamed where the server can (memory on both sides), else read in pages.

use std::fmt::Write as _;
use std::pin::Pin;
use std::time::Duration;

use futures::io::{AsyncBufRead, AsyncBufReadExt};
use kube::Client;
use kube::api::{ListParams, WatchParams};
use kube::core::Status;
use kube::core::request::Request;
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::backoff::{Backoff, jitter};
use super::decode::{self, Object, Unreadable, WatchEvent};
use super::{Kind, Selection};
use crate::model::Event;
use crate::model::objects::Metadata;
use crate::news::News;

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

/// The lines of a watch.
struct Lines {
    from: Pin<Box<dyn AsyncBufRead + Send>>,
    line: Vec<u8>,
}

impl Lines {
    /// The next event and when it had been read; `None` when the watch has ended.
    async fn next<K: Kind>(&mut self) -> Result<Option<(WatchEvent<K>, Instant)>, Halt> {
        self.line.clear();
        let length = self.from.read_until(b'\n', &mut self.line).await.map_err(|error| failed(chain(&error)))?;
        if length == 0 {
            return Ok(None);
        }
        let heard = Instant::now();
        let event = decode::event(&self.line).map_err(|error| failed(format!("this is no watch event: {error}")))?;
        Ok(Some((event, heard)))
    }
}

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
    news: Sender<News>,
    /// Where to resume the watch; `None` before the first complete list.
    version: Option<String>,
    stream_lists: bool,
    listed: Option<Instant>,
    backoff: Backoff,
    failures: u32,
    kind: std::marker::PhantomData<fn() -> K>,
}

pub(super) async fn follow<K: Kind>(client: Client, selection: Selection, news: Sender<News>) {
    let mut follower = Follower::<K> {
        client,
        selection,
        news,
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
                self.send(Event::Reset(Vec::new()), Instant::now()).await.map_err(|_| Unheard)?;
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
            () = self.news.closed() => {}
        }
    }

    /// Learns everything; gives the watch that goes on from there.
    async fn list(&mut self) -> Result<Lines, Halt> {
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
    async fn stream_list(&mut self) -> Result<Lines, Halt> {
        let mut events = self.watch("", true).await.map_err(|halt| match halt {
            Halt::Failed { reason, .. } if reason.starts_with(REFUSED) => Halt::NoStreamingList,
            other => other,
        })?;
        self.send(Event::Begin, Instant::now()).await?;
        let mut count = 0_usize;
        loop {
            // An API server that does not know streaming lists may start a plain watch: silence instead of a list.
            let Ok(event) = timeout(ANSWER_WITHIN, events.next::<K>()).await else { return Err(Halt::NoStreamingList) };
            let Some((event, heard)) = event? else {
                return Err(failed("the connection ended in the middle of the list"));
            };
            match event {
                WatchEvent::Put(object) => {
                    count += 1;
                    self.listed_object(object, heard).await?;
                }
                WatchEvent::Bookmark(mark) if mark.annotations.contains_key("k8s.io/initial-events-end") => {
                    self.complete(count, mark.resource_version.unwrap_or_default()).await?;
                    return Ok(events);
                }
                WatchEvent::Bookmark(_) | WatchEvent::Deleted(_) => {}
                WatchEvent::Error(status) => return Err(refusal::<K>(&status)),
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
        self.send(Event::Begin, Instant::now()).await?;
        let mut count = 0_usize;
        loop {
            let request = Request::new(K::PATH).list(&parameters).map_err(|error| failed(error.to_string()))?;
            let text = in_time(self.client.request_text(request)).await?.map_err(halt::<K>)?;
            let heard = Instant::now();
            let page = decode::page::<K>(&text).map_err(|error| failed(format!("this is no list: {error}")))?;
            for object in page.items {
                count += 1;
                self.listed_object(object, heard).await?;
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
    async fn listed_object(&self, object: Object<K>, heard: Instant) -> Result<(), Halt> {
        match readable::<K>(object) {
            Ok(object) => self.send(Event::Apply(object), heard).await,
            Err(_) => Ok(()),
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
        self.send(Event::End, Instant::now()).await?;
        self.version = Some(version);
        Ok(())
    }

    async fn watch(&self, version: &str, with_list: bool) -> Result<Lines, Halt> {
        let parameters = WatchParams {
            label_selector: self.selection.labels.clone(),
            field_selector: self.selection.fields.clone(),
            timeout: Some(WATCH_SECONDS + jitter(Duration::from_secs(WATCH_SECONDS.into())).as_secs() as u32),
            bookmarks: true,
            send_initial_events: with_list,
        };
        let request = Request::new(K::PATH).watch(&parameters, version).map_err(|error| failed(error.to_string()))?;
        let body = in_time(self.client.request_stream(request)).await?.map_err(halt::<K>)?;
        Ok(Lines { from: Box::pin(body), line: Vec::new() })
    }

    async fn forward(&mut self, mut events: Lines) -> Result<(), Halt> {
        loop {
            // The server ends every watch; when it does not, something between us swallowed its end.
            let Ok(event) = timeout(LONGEST_WATCH, events.next::<K>()).await else { return Ok(()) };
            let Some((event, heard)) = event? else { return Ok(()) };
            self.failures = 0;
            match event {
                // What cannot be read counts as absent: the same cluster state then always means the same tables.
                WatchEvent::Put(object) => match readable::<K>(object) {
                    Ok(object) => {
                        self.advance(object.metadata())?;
                        self.send(Event::Apply(object), heard).await?;
                    }
                    Err(unreadable) => self.forget(unreadable.metadata, heard).await?,
                },
                WatchEvent::Deleted(metadata) => self.forget(metadata, heard).await?,
                WatchEvent::Bookmark(metadata) => self.advance(&metadata)?,
                WatchEvent::Error(status) => return Err(refusal::<K>(&status)),
            }
        }
    }

    async fn forget(&mut self, metadata: Metadata, heard: Instant) -> Result<(), Halt> {
        self.advance(&metadata)?;
        self.send(Event::Delete { namespace: metadata.namespace, name: metadata.name }, heard).await
    }

    /// Remembers where the watch is. A version below the last one means that the server's data was put back (a restored
    /// backup): what we know may be from a future that never happens.
    fn advance(&mut self, metadata: &Metadata) -> Result<(), Halt> {
        let version = metadata.resource_version.as_deref().unwrap_or_default();
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

    async fn send(&self, event: Event<K>, heard: Instant) -> Result<(), Halt> {
        let news = News { change: K::change(event), heard: heard.into_std() };
        self.news.send(news).await.map_err(|_| Halt::Unheard)
    }
}

/// The object, or who it is after telling why it cannot be used.
fn readable<K: Kind>(object: Object<K>) -> Object<K> {
    object.inspect_err(|unreadable| {
        let Unreadable { metadata, why } = &**unreadable;
        warn!(namespace = metadata.namespace, name = metadata.name, "{}: skipped, it cannot be read: {why}", K::NAME);
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
