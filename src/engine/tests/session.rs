use super::*;

#[tokio::test]
async fn sessions_share_functions_and_memory_but_no_tables() {
    let engine = engine();
    let one = session_with(&engine, vec![]);
    let other = engine.session_with_threads(1);
    assert!(one.table_exist("raw.events").unwrap());
    assert!(other.catalog(CATALOG).unwrap().schema("raw").is_none());
    assert!(Arc::ptr_eq(&one.runtime_env(), &other.runtime_env()));
    assert_eq!(other.copied_config().target_partitions(), 1);
    assert_eq!(one.copied_config().target_partitions(), 3);
}

#[tokio::test]
async fn numbers_with_a_point_are_decimals() {
    let engine = engine();
    let plan = plan(&engine.session(), "SELECT 0.06 AS rate, 'x'::varchar AS word").await;
    let batches = engine.collect(plan, 1).await.unwrap();
    let schema = batches[0].schema();
    assert_eq!(schema.field(0).data_type(), &DataType::Decimal128(2, 2));
    assert_eq!(schema.field(1).data_type(), &DataType::Utf8);
}

#[tokio::test]
async fn a_query_beyond_the_memory_limit_fails_and_names_who_took_it() {
    let engine =
        Engine::new(EngineConfig { threads: 1, memory_bytes_max: 1 << 20, spill_dir: None, batch_rows: 1024 })
            .unwrap();
    let sql =
        "SELECT array_agg(a.value ORDER BY b.value) FROM generate_series(1, 2000) a, generate_series(1, 2000) b";
    let plan = plan(&engine.session(), sql).await;
    let error = engine.collect(plan, 1).await.unwrap_err();
    assert!(matches!(error.find_root(), DataFusionError::ResourcesExhausted(_)), "{error}");
}

#[test]
fn a_spill_directory_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let config =
        EngineConfig { threads: 1, memory_bytes_max: 1, spill_dir: Some(file.join("spill")), batch_rows: 1 };
    let error = Engine::new(config).unwrap_err().to_string();
    assert!(error.contains("spill directory") && error.contains("file/spill"), "{error}");
}
