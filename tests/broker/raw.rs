//! A client of single requests, for what the usual client does not show.

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::MetadataResponseTopic;
use kafka_protocol::messages::{MetadataRequest, MetadataResponse, RequestHeader, ResponseHeader, TopicName};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub struct Raw {
    stream: TcpStream,
}

impl Raw {
    pub async fn connect(bootstrap: &str) -> Self {
        Self { stream: TcpStream::connect(bootstrap).await.unwrap() }
    }

    pub async fn ask<R: Request>(&mut self, version: i16, request: &R) -> R::Response {
        self.send(version, request).await;
        self.receive::<R>(version).await
    }

    pub async fn send<R: Request>(&mut self, version: i16, request: &R) {
        let mut body = BytesMut::new();
        RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_correlation_id(7)
            .with_client_id(Some(StrBytes::from_static_str("raw")))
            .encode(&mut body, R::header_version(version))
            .unwrap();
        request.encode(&mut body, version).unwrap();
        self.send_frame(&body).await;
    }

    pub async fn send_frame(&mut self, body: &[u8]) {
        self.stream.write_all(&i32::try_from(body.len()).unwrap().to_be_bytes()).await.unwrap();
        self.stream.write_all(body).await.unwrap();
    }

    pub async fn receive<R: Request>(&mut self, version: i16) -> R::Response {
        let length = self.stream.read_i32().await.unwrap();
        let mut frame = vec![0; usize::try_from(length).unwrap()];
        self.stream.read_exact(&mut frame).await.unwrap();
        let mut frame = Bytes::from(frame);
        let header = ResponseHeader::decode(&mut frame, R::Response::header_version(version)).unwrap();
        assert_eq!(header.correlation_id, 7);
        R::Response::decode(&mut frame, version).unwrap()
    }

    /// True when the broker closes the connection without another byte.
    pub async fn is_closed(&mut self) -> bool {
        matches!(self.stream.read(&mut [0]).await, Ok(0) | Err(_))
    }

    pub async fn metadata(&mut self) -> MetadataResponse {
        self.ask(12, &MetadataRequest::default().with_topics(None)).await
    }

    pub async fn topic(&mut self, name: &str) -> MetadataResponseTopic {
        let asked = MetadataRequestTopic::default().with_name(Some(topic_name(name)));
        let answer: MetadataResponse =
            self.ask(12, &MetadataRequest::default().with_topics(Some(vec![asked]))).await;
        answer.topics.into_iter().next().unwrap()
    }
}

pub fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}
