//! Policies: which app, answer or redirect a request gets. `policies/*.toml` are compiled once into
//! a [`Policy`], and [`Policy::decide`] is asked about each request. Pure: no I/O, no clock.
//!
//! The first route that matches wins; files count in name order, routes in file order. A route is
//! found by host (hash maps for exact names and for wildcards) and then by path prefix. The path is
//! taken as it was sent; one that holds `.` or `..` segments is answered 400 here, because the app
//! could read it as another path than the one that was decided about (see `path`).

mod compile;
mod host;
mod path;
mod redirect;

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::Arc,
};

pub use compile::compile;
use host::Pattern;

use crate::model::{AppName, InvalidName};

/// The name under which requests that no route may see are counted.
const REFUSED: &str = "refused";

/// The name of a route: in logs and metrics, and in the report. Unique in a policy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteName(Arc<str>);

impl RouteName {
    /// Checks the text, by the rules of app names, and makes the name.
    pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidName> {
        AppName::new(text).map(|name| Self(name.as_str().into()))
    }

    /// The name as it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for RouteName {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Self::new(text)
    }
}

impl fmt::Display for RouteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A fixed answer of a route. Every part of it can be sent as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// 200 to 599.
    pub status: u16,
    /// The value of `content-type`.
    pub content_type: String,
    /// Empty when the status allows no body.
    pub body: String,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action<'p> {
    /// Its path, or a host that a redirect needs, may mean one thing here and another to an app.
    Refused,
    /// It is for this app.
    App(&'p AppName),
    /// It is answered at once.
    Answer(&'p Answer),
    /// It is sent elsewhere.
    Redirect {
        /// 301, 302, 303, 307 or 308.
        status: u16,
        /// The value of `location`: visible ASCII only, whatever the request held.
        location: String,
    },
}

/// What was decided about a request, and by which route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision<'p> {
    /// The route that matched.
    pub route: &'p RouteName,
    /// What it says.
    pub action: Action<'p>,
}

#[derive(Debug, Clone)]
struct Route {
    name: RouteName,
    host: Pattern,
    path: Box<str>,
    then: Then,
}

#[derive(Debug, Clone)]
enum Then {
    App(AppName),
    Answer(Answer),
    Redirect { status: u16, to: redirect::Target },
}

/// All routes, ready to be asked.
#[derive(Debug, Clone)]
pub struct Policy {
    routes: Vec<Route>,
    index: Index,
    refused: RouteName,
}

/// Routes by host: indexes into the routes, each list in their order.
#[derive(Debug, Clone, Default)]
struct Index {
    any: Vec<usize>,
    exact: HashMap<Box<str>, Vec<usize>>,
    below: HashMap<Box<str>, Vec<usize>>,
}

impl Policy {
    fn new(routes: Vec<Route>) -> Self {
        let mut index = Index::default();
        for (at, route) in routes.iter().enumerate() {
            match &route.host {
                Pattern::Any => index.any.push(at),
                Pattern::Exact(host) => index.exact.entry(host.clone()).or_default().push(at),
                Pattern::Below(host) => index.below.entry(host.clone()).or_default().push(at),
            }
        }
        Self { routes, index, refused: RouteName(REFUSED.into()) }
    }

    /// Decides about a request: its `Host` or `:authority`, its path without the query, and what
    /// follows the `?`. `None` when no route matches.
    pub fn decide(
        &self,
        host: Option<&str>,
        path: &str,
        query: Option<&str>,
    ) -> Option<Decision<'_>> {
        let refused = Decision { route: &self.refused, action: Action::Refused };
        if path::is_refused(path) {
            return Some(refused);
        }
        // What is no host matches the routes that are for every host.
        let host = host.and_then(host::canonical);
        let host = host.as_deref();
        let at = self.find(host, host.into_iter().flat_map(host::parents), path)?;
        let route = self.routes.get(at)?;
        let action = match &route.then {
            Then::App(app) => Action::App(app),
            Then::Answer(answer) => Action::Answer(answer),
            Then::Redirect { status, to } => {
                if host.is_none() && to.needs_host() {
                    return Some(refused);
                }
                let location = to.location(host.unwrap_or_default(), path, query);
                Action::Redirect { status: *status, location }
            }
        };
        Some(Decision { route: &route.name, action })
    }

    /// The names of all routes, in the order in which they count.
    pub fn routes(&self) -> impl Iterator<Item = &RouteName> {
        self.routes.iter().map(|route| &route.name)
    }

    /// The apps that routes name, each once.
    pub fn apps(&self) -> BTreeSet<&AppName> {
        fn app(route: &Route) -> Option<&AppName> {
            match &route.then {
                Then::App(app) => Some(app),
                Then::Answer(_) | Then::Redirect { .. } => None,
            }
        }
        self.routes.iter().filter_map(app).collect()
    }

    /// The first route that is for this host (or one of the wildcards above it) and this path.
    fn find<'h>(
        &self,
        exact: Option<&str>,
        above: impl Iterator<Item = &'h str>,
        path: &str,
    ) -> Option<usize> {
        let exact = exact.and_then(|host| self.index.exact.get(host));
        let above = above.filter_map(|host| self.index.below.get(host));
        let mut first = self.routes.len();
        for list in exact.into_iter().chain(above).chain([&self.index.any]) {
            let covers = |at: &&usize| {
                self.routes.get(**at).is_some_and(|route| path::covers(&route.path, path))
            };
            let found = list.iter().take_while(|at| **at < first).find(covers);
            first = found.copied().unwrap_or(first);
        }
        (first < self.routes.len()).then_some(first)
    }

    /// An earlier route that takes everything this one could.
    fn shadowed(&self, at: usize) -> Option<&RouteName> {
        let route = self.routes.get(at)?;
        let first = match &route.host {
            Pattern::Any => self.find(None, std::iter::empty(), &route.path),
            Pattern::Exact(host) => self.find(Some(host), host::parents(host), &route.path),
            Pattern::Below(host) => {
                let above = std::iter::once(host.as_ref()).chain(host::parents(host));
                self.find(None, above, &route.path)
            }
        }?;
        if first < at { self.routes.get(first).map(|route| &route.name) } else { None }
    }
}

#[cfg(test)]
mod tests;
