//! Who sends a request, as its headers and its connection tell.

use tonic::transport::server::Connected;
use tonic::{Request, Status};

use crate::serve::auth::{self, Origin, Protocol};
use crate::serve::tls::sockets::{Peer, Socket};

impl Connected for Socket {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer()
    }
}

/// What a request says of who sends it.
#[derive(Debug)]
pub(super) struct Asker {
    pub(super) authorization: Result<Authorization, Status>,
    pub(super) origin: Origin,
}

#[derive(Debug)]
pub(super) enum Authorization {
    None,
    /// `Basic`
    User {
        user: String,
        password: String,
    },
    /// `Bearer`
    Token(String),
}

impl Asker {
    pub(super) fn of<T>(request: &Request<T>) -> Self {
        let peer = request.extensions().get::<Peer>();
        let (address, tls) = (peer.map(|peer| peer.address), peer.is_some_and(|peer| peer.tls));
        let origin = Origin { address, protocol: Protocol::Flight, tls };
        let header = request.metadata().get("authorization");
        let authorization = match header {
            None => Ok(Authorization::None),
            Some(header) => header.to_str().ok().map_or_else(|| Err(unreadable()), read),
        };
        Self { authorization, origin }
    }
}

fn unreadable() -> Status {
    Status::unauthenticated("authorization is neither Basic, with a user name in it, nor Bearer")
}

fn read(header: &str) -> Result<Authorization, Status> {
    match header.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
            Ok(Authorization::Token(token.trim().to_owned()))
        }
        _ => auth::basic(header)
            .map(|(user, password)| Authorization::User { user, password })
            .ok_or_else(unreadable),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn authorization_is_read_or_refused() {
        let read = |value: &'static str| {
            let mut request = Request::new(());
            request.metadata_mut().insert("authorization", value.parse().unwrap());
            Asker::of(&request).authorization
        };
        let basic = read("Basic YW5hOnNlY3JldA==");
        assert!(
            matches!(basic, Ok(Authorization::User { user, password }) if user == "ana" && password == "secret")
        );
        assert!(matches!(read("bearer x"), Ok(Authorization::Token(token)) if token == "x"));
        assert!(matches!(Asker::of(&Request::new(())).authorization, Ok(Authorization::None)));
        for wrong in ["", "Basic", "Basic !", "Basic Og==", "Basic OnB3", "Digest x"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
