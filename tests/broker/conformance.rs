//! What holds for the embedded broker as for Apache Kafka.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use kafka_protocol::ResponseError;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::{FetchRequest, FetchResponse};
use kafka_protocol::records::RecordBatchDecoder;
use rdkafka::admin::{AlterConfig, NewPartitions, ResourceSpecifier};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::Producer;
use rdkafka::{Offset, TopicPartitionList};
use uuid::Uuid;

use crate::client::{
    COMMITTED, PATIENCE, Settings, UNCOMMITTED, Writer, admin, config, create_named, create_topic, patient,
    position, produce, read_all, read_to_end, reader, unique, watermarks,
};
use crate::raw::Raw;

const IDEMPOTENT: Settings = &[("enable.idempotence", "true")];

fn one_by_one(count: u64) -> Vec<(i64, u64)> {
    (0..count).map(|n| (i64::try_from(n).unwrap(), n)).collect()
}

pub async fn every_record_is_read_once_at_its_offset(kafka: &str) {
    const RECORDS: u64 = 20_000;
    let topic = create_topic(kafka, "once", 3).await;
    for partition in 0..3 {
        let delivered = produce(kafka, &topic, partition, 0..RECORDS, IDEMPOTENT);
        let delivered: Vec<_> = delivered.into_iter().map(|(number, offset)| (offset, number)).collect();
        assert_eq!(delivered, one_by_one(RECORDS), "the producer was told the offsets");
    }
    for partition in 0..3 {
        assert_eq!(read_all(kafka, &topic, partition, COMMITTED), one_by_one(RECORDS));
        assert_eq!(read_all(kafka, &topic, partition, UNCOMMITTED), one_by_one(RECORDS));
        assert_eq!(watermarks(kafka, &topic, partition), (0, i64::try_from(RECORDS).unwrap()));
    }
}

pub async fn compressed_records_pass_through(kafka: &str) {
    let codecs: [Settings; 5] = [
        &[("compression.type", "gzip")],
        &[("compression.type", "snappy")],
        &[("compression.type", "lz4")],
        &[("compression.type", "zstd")],
        &[("acks", "1")],
    ];
    let topic = create_topic(kafka, "compressed", 1).await;
    for (round, codec) in (0..).zip(codecs) {
        produce(kafka, &topic, 0, round * 1_000..(round + 1) * 1_000, codec);
    }
    assert_eq!(read_all(kafka, &topic, 0, &[("check.crcs", "true")]), one_by_one(5_000));
}

pub async fn a_seek_into_a_batch_starts_there(kafka: &str) {
    seeks(kafka, &[("linger.ms", "200")]).await;
}

pub async fn a_seek_among_many_small_batches_starts_there(kafka: &str) {
    seeks(kafka, &[("batch.num.messages", "7")]).await;
}

async fn seeks(kafka: &str, batching: Settings) {
    const RECORDS: u64 = 10_000;
    let topic = create_topic(kafka, "seek", 1).await;
    produce(kafka, &topic, 0, 0..RECORDS, batching);
    let in_order = one_by_one(RECORDS);
    for from in [1, 100, 3_224, 4_999, 5_000, 9_999, 10_000] {
        let consumer = reader(kafka, &topic, 0, Offset::Offset(from), UNCOMMITTED);
        let read = read_to_end(&consumer).unwrap();
        assert_eq!(read, in_order[usize::try_from(from).unwrap()..], "from {from}");
    }
    let consumer = reader(kafka, &topic, 0, Offset::Beginning, UNCOMMITTED);
    read_to_end(&consumer).unwrap();
    for back in [7_777, 3, 9_998] {
        consumer.seek(&topic, 0, Offset::Offset(back), PATIENCE).unwrap();
        let read = read_to_end(&consumer).unwrap();
        assert_eq!(read, in_order[usize::try_from(back).unwrap()..], "after a seek to {back}");
    }
}

/// Even with a limit of one byte, and with nothing before that batch.
pub async fn a_fetch_returns_the_batch_that_holds_the_offset(kafka: &str) {
    let topic = create_topic(kafka, "batch", 1).await;
    // Two deliberate batches, of 500 and of 300 records.
    produce(kafka, &topic, 0, 0..500, &[("linger.ms", "500")]);
    produce(kafka, &topic, 0, 500..800, &[("linger.ms", "500")]);
    let mut raw = Raw::connect(kafka).await;
    let id = raw.topic(&topic).await.topic_id;
    for (asked, holds) in [(0, 0..500), (1, 0..500), (499, 0..500), (500, 500..800), (799, 500..800)] {
        let answer = fetch(&mut raw, id, asked, Limits { bytes_max: 1, wait_ms: 0 }).await;
        let partition = &answer.responses[0].partitions[0];
        assert_eq!(partition.error_code, 0);
        assert_eq!(partition.high_watermark, 800);
        let mut records = partition.records.clone().unwrap();
        let batch = RecordBatchDecoder::decode(&mut records).unwrap();
        let offsets: Vec<_> = batch.records.iter().map(|record| record.offset).collect();
        assert_eq!(offsets, holds.collect::<Vec<i64>>(), "asked for {asked}");
        assert!(records.is_empty(), "more than one batch for a limit of one byte");
    }
    let all = fetch(&mut raw, id, 0, Limits { bytes_max: 1 << 20, wait_ms: 0 }).await;
    let mut records = all.responses[0].partitions[0].records.clone().unwrap();
    let batches = RecordBatchDecoder::decode_all(&mut records).unwrap();
    assert_eq!(batches.iter().map(|batch| batch.records.len()).sum::<usize>(), 800);
}

pub async fn a_waiting_fetch_is_answered_by_the_next_record(kafka: &str) {
    let topic = create_topic(kafka, "wait", 1).await;
    let mut raw = Raw::connect(kafka).await;
    let id = raw.topic(&topic).await.topic_id;
    let asked_at = Instant::now();
    let answer = fetch(&mut raw, id, 0, Limits { bytes_max: 1 << 20, wait_ms: 300 }).await;
    assert!(asked_at.elapsed() >= Duration::from_millis(300), "answered before the wait was over");
    assert_eq!(answer.responses[0].partitions[0].records.as_ref().map_or(0, |records| records.len()), 0);

    let asked_at = Instant::now();
    let waiting = fetch(&mut raw, id, 0, Limits { bytes_max: 1 << 20, wait_ms: 20_000 });
    let producing = {
        let (kafka, topic) = (kafka.to_owned(), topic.clone());
        tokio::task::spawn_blocking(move || produce(&kafka, &topic, 0, 0..1, &[]))
    };
    let (answer, _) = tokio::join!(waiting, producing);
    assert!(asked_at.elapsed() < Duration::from_secs(15), "the record did not wake the fetch");
    assert!(!answer.responses[0].partitions[0].records.as_ref().unwrap().is_empty());
}

struct Limits {
    bytes_max: i32,
    wait_ms: i32,
}

async fn fetch(raw: &mut Raw, topic: Uuid, offset: i64, limits: Limits) -> FetchResponse {
    let partition = FetchPartition::default()
        .with_partition(0)
        .with_fetch_offset(offset)
        .with_current_leader_epoch(-1)
        .with_partition_max_bytes(limits.bytes_max);
    let request = FetchRequest::default()
        .with_max_wait_ms(limits.wait_ms)
        .with_min_bytes(1)
        .with_max_bytes(limits.bytes_max)
        .with_session_epoch(-1)
        .with_topics(vec![FetchTopic::default().with_topic_id(topic).with_partitions(vec![partition])]);
    raw.ask(16, &request).await
}

pub async fn an_offset_outside_is_an_error(kafka: &str) {
    let topic = create_topic(kafka, "outside", 1).await;
    produce(kafka, &topic, 0, 0..100, &[]);
    let at_the_end = reader(kafka, &topic, 0, Offset::Offset(100), COMMITTED);
    assert_eq!(read_to_end(&at_the_end).unwrap(), vec![]);
    let beyond = reader(kafka, &topic, 0, Offset::Offset(101), COMMITTED);
    assert_out_of_range(read_to_end(&beyond));
    let mut raw = Raw::connect(kafka).await;
    let id = raw.topic(&topic).await.topic_id;
    let answer = fetch(&mut raw, id, 101, Limits { bytes_max: 1 << 20, wait_ms: 0 }).await;
    assert_eq!(answer.responses[0].partitions[0].error_code, ResponseError::OffsetOutOfRange.code());
}

fn assert_out_of_range(read: Result<Vec<(i64, u64)>, KafkaError>) {
    let error = read.expect_err("records were read although the position is outside");
    assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::AutoOffsetReset), "{error}");
}

pub async fn deleted_records_are_gone(kafka: &str) {
    let topic = create_topic(kafka, "deleted", 1).await;
    produce(kafka, &topic, 0, 0..1_000, &[("linger.ms", "200")]);
    let mut below = TopicPartitionList::new();
    below.add_partition_offset(&topic, 0, Offset::Offset(321)).unwrap();
    let deleted = admin(kafka).delete_records(&below, &patient()).await.unwrap();
    assert_eq!(deleted.elements()[0].offset(), Offset::Offset(321), "the new log start");

    assert_eq!(watermarks(kafka, &topic, 0), (321, 1_000));
    assert_out_of_range(read_to_end(&reader(kafka, &topic, 0, Offset::Offset(320), COMMITTED)));
    let left = read_all(kafka, &topic, 0, COMMITTED);
    assert_eq!(left, one_by_one(1_000)[321..], "from the middle of a batch on");
}

pub async fn a_recreated_topic_has_another_id(kafka: &str) {
    let topic = create_topic(kafka, "recreated", 1).await;
    produce(kafka, &topic, 0, 0..10, &[]);
    let mut raw = Raw::connect(kafka).await;
    let cluster = raw.metadata().await.cluster_id.unwrap();
    let first = raw.topic(&topic).await.topic_id;
    assert_ne!(first, Uuid::nil());

    admin(kafka).delete_topics(&[&topic], &patient()).await.unwrap().remove(0).unwrap();
    create_named(kafka, &topic, 1, &[]).await;
    let deadline = Instant::now() + PATIENCE;
    let second = loop {
        let described = raw.topic(&topic).await;
        if described.error_code == 0 {
            break described.topic_id;
        }
        assert!(Instant::now() < deadline, "the topic does not come back");
    };
    assert_ne!(second, first);
    assert_eq!(raw.metadata().await.cluster_id.unwrap(), cluster);
    assert_eq!(watermarks(kafka, &topic, 0), (0, 0));
    let old = fetch(&mut raw, first, 0, Limits { bytes_max: 1 << 20, wait_ms: 0 }).await;
    assert_eq!(old.responses[0].partitions[0].error_code, ResponseError::UnknownTopicId.code());
}

pub async fn partitions_can_be_added(kafka: &str) {
    let topic = create_topic(kafka, "grown", 1).await;
    produce(kafka, &topic, 0, 0..10, &[]);
    let grown = admin(kafka).create_partitions([&NewPartitions::new(&topic, 3)], &patient()).await.unwrap();
    grown.into_iter().for_each(|result| assert!(result.is_ok(), "{result:?}"));
    let fewer = admin(kafka).create_partitions([&NewPartitions::new(&topic, 2)], &patient()).await.unwrap();
    let (_, reason) = fewer.into_iter().next().unwrap().unwrap_err();
    assert_eq!(reason, RDKafkaErrorCode::InvalidPartitions);

    let mut raw = Raw::connect(kafka).await;
    let deadline = Instant::now() + PATIENCE;
    while raw.topic(&topic).await.partitions.len() != 3 {
        assert!(Instant::now() < deadline, "the new partitions do not appear");
    }
    produce(kafka, &topic, 2, 0..10, &[]);
    assert_eq!(read_all(kafka, &topic, 2, COMMITTED), one_by_one(10));
    assert_eq!(read_all(kafka, &topic, 0, COMMITTED), one_by_one(10));
    assert_eq!(watermarks(kafka, &topic, 1), (0, 0));
}

pub async fn settings_are_kept_and_shown(kafka: &str) {
    let plain = create_topic(kafka, "plain", 1).await;
    let compacted = unique("compacted");
    create_named(kafka, &compacted, 1, &[("cleanup.policy", "compact")]).await;
    assert_eq!(cleanup_policy(kafka, &plain).await, "delete");
    assert_eq!(cleanup_policy(kafka, &compacted).await, "compact");
    let change = AlterConfig::new(ResourceSpecifier::Topic(&plain)).set("cleanup.policy", "compact");
    admin(kafka).alter_configs([&change], &patient()).await.unwrap().remove(0).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while cleanup_policy(kafka, &plain).await != "compact" {
        assert!(Instant::now() < deadline, "the change does not appear");
    }
}

async fn cleanup_policy(kafka: &str, topic: &str) -> String {
    let described = admin(kafka).describe_configs([&ResourceSpecifier::Topic(topic)], &patient()).await;
    let resource = described.unwrap().remove(0).unwrap();
    resource.get("cleanup.policy").unwrap().value.clone().unwrap()
}

pub async fn a_time_is_looked_up_to_the_record(kafka: &str) {
    const START: i64 = 1_700_000_000_000;
    let topic = create_topic(kafka, "times", 1).await;
    let writer = Writer::new(kafka, &[("linger.ms", "200"), ("compression.type", "lz4")]);
    for number in 0..1_000 {
        writer.send_at(&topic, 0, number, Some(START + i64::try_from(number).unwrap() * 10));
    }
    writer.flush();
    let consumer: BaseConsumer = config(kafka, &[("group.id", "times")]).create().unwrap();
    let look_up = |timestamp: i64| {
        let mut asked = TopicPartitionList::new();
        asked.add_partition_offset(&topic, 0, Offset::Offset(timestamp)).unwrap();
        consumer.offsets_for_times(asked, PATIENCE).unwrap().elements()[0].offset()
    };
    assert_eq!(look_up(START - 1), Offset::Offset(0));
    assert_eq!(look_up(START + 4_210), Offset::Offset(421));
    assert_eq!(look_up(START + 4_211), Offset::Offset(422));
    assert_eq!(look_up(START + 9_991), Offset::End);
}

fn transactional(kafka: &str, name: &str) -> Writer {
    let mut config = config(kafka, &[("linger.ms", "5")]);
    config.set("transactional.id", name);
    Writer::of(&config)
}

pub async fn aborted_records_are_invisible(kafka: &str) {
    let topic = create_topic(kafka, "aborted", 2).await;
    let writer = transactional(kafka, &unique("writer"));
    writer.producer.init_transactions(PATIENCE).unwrap();
    for (round, commits) in [(0, true), (1, false), (2, true)] {
        writer.producer.begin_transaction().unwrap();
        for number in round * 10..(round + 1) * 10 {
            writer.send(&topic, 0, number);
            writer.send(&topic, 1, number);
        }
        writer.flush();
        match commits {
            true => writer.producer.commit_transaction(PATIENCE).unwrap(),
            false => writer.producer.abort_transaction(PATIENCE).unwrap(),
        }
    }
    // 0..=9 and a marker, 11..=20 aborted and a marker, 22..=31 and a marker.
    let committed: Vec<(i64, u64)> = (0..10).zip(0..10).chain((22..32).zip(20..30)).collect();
    let all: Vec<(i64, u64)> = (0..10).chain(11..21).chain(22..32).zip(0..30).collect();
    for partition in 0..2 {
        assert_eq!(read_all(kafka, &topic, partition, COMMITTED), committed);
        assert_eq!(read_all(kafka, &topic, partition, UNCOMMITTED), all);
        assert_eq!(watermarks(kafka, &topic, partition), (0, 33));
        let consumer = reader(kafka, &topic, partition, Offset::Beginning, COMMITTED);
        read_to_end(&consumer).unwrap();
        let from_within = reader(kafka, &topic, partition, Offset::Offset(15), COMMITTED);
        assert_eq!(read_to_end(&from_within).unwrap(), committed[10..], "from within the aborted records");
    }
}

pub async fn an_open_transaction_hides_what_follows(kafka: &str) {
    let topic = create_topic(kafka, "open", 1).await;
    produce(kafka, &topic, 0, 0..5, &[]);
    let writer = transactional(kafka, &unique("writer"));
    writer.producer.init_transactions(PATIENCE).unwrap();
    writer.producer.begin_transaction().unwrap();
    writer.send(&topic, 0, 5);
    writer.flush();
    produce(kafka, &topic, 0, 6..8, &[]);

    assert_eq!(read_all(kafka, &topic, 0, UNCOMMITTED), one_by_one(8));
    let consumer = reader(kafka, &topic, 0, Offset::Beginning, COMMITTED);
    assert_eq!(read_to_end(&consumer).unwrap(), one_by_one(5));
    assert_eq!(position(&consumer), Offset::Offset(5), "the position is the last stable offset");

    writer.producer.commit_transaction(PATIENCE).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut rest = Vec::new();
    while rest.len() < 3 {
        assert!(Instant::now() < deadline, "the rest does not appear after the commit");
        rest.extend(read_to_end(&consumer).unwrap());
    }
    assert_eq!(rest, one_by_one(8)[5..]);
    assert_eq!(watermarks(kafka, &topic, 0), (0, 9));
}

pub async fn a_second_producer_fences_the_first(kafka: &str) {
    let topic = create_topic(kafka, "fenced", 1).await;
    let name = unique("writer");
    let first = transactional(kafka, &name);
    first.producer.init_transactions(PATIENCE).unwrap();
    first.producer.begin_transaction().unwrap();
    first.send(&topic, 0, 1);
    first.flush();

    let second = transactional(kafka, &name);
    second.producer.init_transactions(PATIENCE).unwrap();
    second.producer.begin_transaction().unwrap();
    second.send(&topic, 0, 2);
    second.flush();
    second.producer.commit_transaction(PATIENCE).unwrap();

    let refused = first.producer.commit_transaction(PATIENCE).unwrap_err();
    assert!(matches!(&refused, KafkaError::Transaction(error) if error.is_fatal()), "{refused}");
    let numbers: Vec<_> = read_all(kafka, &topic, 0, COMMITTED).into_iter().map(|(_, number)| number).collect();
    assert_eq!(numbers, vec![2], "what the first wrote was aborted by the second");
}

pub async fn group_offsets_are_kept(kafka: &str) {
    let topic = create_topic(kafka, "groups", 2).await;
    let group = unique("group");
    let consumer = || {
        let mut config = config(kafka, &[]);
        config.set("group.id", &group);
        config.create::<BaseConsumer>().unwrap()
    };
    let committer = consumer();
    let mut positions = TopicPartitionList::new();
    positions.add_partition_offset(&topic, 1, Offset::Offset(42)).unwrap();
    committer.assign(&positions).unwrap();
    committer.commit(&positions, CommitMode::Sync).unwrap();
    let mut asked = TopicPartitionList::new();
    asked.add_partition(&topic, 0);
    asked.add_partition(&topic, 1);
    let committed = consumer().committed_offsets(asked, PATIENCE).unwrap();
    let offsets: Vec<_> = committed.elements().iter().map(|element| element.offset()).collect();
    assert_eq!(offsets, vec![Offset::Invalid, Offset::Offset(42)]);
}

pub async fn two_members_share_the_partitions(kafka: &str) {
    let topic = create_topic(kafka, "shared", 4).await;
    for partition in 0..4 {
        let first = u64::try_from(partition).unwrap() * 100;
        produce(kafka, &topic, partition, first..first + 100, &[]);
    }
    let group = unique("group");
    let member = || {
        let mut config = config(kafka, &[]);
        config.set("group.id", &group).set("auto.offset.reset", "earliest").set("session.timeout.ms", "6000");
        config.set("heartbeat.interval.ms", "300").set("enable.auto.commit", "false");
        let consumer: BaseConsumer = config.create().unwrap();
        consumer.subscribe(&[&topic]).unwrap();
        consumer
    };
    let members = [member(), member()];
    let shares = || members.iter().map(|member| member.assignment().unwrap().count()).collect::<Vec<_>>();
    let deadline = Instant::now() + PATIENCE;
    let mut seen = BTreeSet::new();
    while seen.len() < 400 || shares() != [2, 2] {
        assert!(Instant::now() < deadline, "{} records, shares {:?}", seen.len(), shares());
        for member in &members {
            if let Some(Ok(message)) = member.poll(Duration::from_millis(10)) {
                seen.insert(crate::client::number(&message));
            }
        }
    }
    assert_eq!(seen, (0..400).collect());
}
