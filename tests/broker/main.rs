//! Conformance of the embedded broker. The functions in `conformance` know only a bootstrap address: they run
//! against the embedded broker always, and against a real Apache Kafka when `VIEWLEDGER_TEST_KAFKA=host:port` is
//! set. What only the embedded broker can do (faults, restarts) is in `embedded`.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod client;
mod conformance;
mod embedded;
mod killed;
mod raw;

/// Every function once against the embedded broker and once against Apache Kafka.
macro_rules! conforms {
    ($($name:ident),* $(,)?) => {
        mod embedded_broker {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let running = crate::embedded::Running::new().await;
                crate::conformance::$name(&running.broker.bootstrap()).await;
                running.stop().await;
            })*
        }
        mod apache_kafka {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                match std::env::var("VIEWLEDGER_TEST_KAFKA") {
                    Ok(bootstrap) => crate::conformance::$name(&bootstrap).await,
                    Err(_) => eprintln!("skipped: VIEWLEDGER_TEST_KAFKA is not set"),
                }
            })*
        }
    };
}

conforms!(
    every_record_is_read_once_at_its_offset,
    compressed_records_pass_through,
    a_seek_into_a_batch_starts_there,
    a_seek_among_many_small_batches_starts_there,
    a_fetch_returns_the_batch_that_holds_the_offset,
    a_waiting_fetch_is_answered_by_the_next_record,
    an_offset_outside_is_an_error,
    deleted_records_are_gone,
    a_recreated_topic_has_another_id,
    partitions_can_be_added,
    settings_are_kept_and_shown,
    a_time_is_looked_up_to_the_record,
    aborted_records_are_invisible,
    an_open_transaction_hides_what_follows,
    a_second_producer_fences_the_first,
    group_offsets_are_kept,
    two_members_share_the_partitions,
);
