//! Embedded Kafka-protocol broker (in work).
