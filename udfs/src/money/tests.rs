#![allow(clippy::unwrap_used)]
use datafusion::logical_expr::ScalarUDF;
use datafusion::prelude::SessionContext;
use num_bigint::BigInt;
use proptest::prelude::*;

use super::*;

async fn answer(sql: &str) -> Result<String, String> {
    let session = SessionContext::new();
    session.state_ref().write().config_mut().options_mut().sql_parser.parse_float_as_decimal = true;
    for function in crate::scalar_functions() {
        session.register_udf(ScalarUDF::clone(&function));
    }
    let rows = async { session.sql(sql).await?.collect().await }
        .await
        .map_err(|error: DataFusionError| error.to_string())?;
    let column = rows[0].column(0);
    Ok(datafusion::arrow::util::display::array_value_to_string(column, 0).unwrap())
}

#[tokio::test]
async fn amounts_are_exact_or_an_error() {
    for (sql, expected) in [
        ("money_mul(0.06, 3)", "0.18"),
        ("money_mul(0.000000001::decimal(18,9), 0.000000001::decimal(18,9))", "0.000000000000000001"),
        ("money_mul(-1.5, 7)", "-10.5"),
        ("money_add(0.1, 0.25)", "0.35"),
        ("money_add(1, 0.5)", "1.5"),
        ("money_add(NULL, 0.5)", ""),
        ("round_half_even(2.5, 0)", "2"),
        ("round_half_even(3.5, 0)", "4"),
        ("round_half_even(-2.5, 0)", "-2"),
        ("round_half_even(2.500001, 0)", "3"),
        ("round_half_even(0.125, 2)", "0.12"),
        ("round_half_even(-0.135, 2)", "-0.14"),
        ("round_half_even(7, 2)", "7.00"),
        ("money_allocate(10.00, make_array(1, 1, 1))", "[3.34, 3.33, 3.33]"),
        ("money_allocate(0.05, make_array(0.5, 0.3, 0.2))", "[0.03, 0.01, 0.01]"),
        ("money_allocate(-0.10, make_array(1, 2))", "[-0.03, -0.07]"),
        ("money_allocate(0.00, make_array(0, 0))", "[0.00, 0.00]"),
    ] {
        assert_eq!(answer(&format!("SELECT {sql}")).await.as_deref(), Ok(expected), "{sql}");
    }
    for (sql, words) in [
        ("money_mul(99999999999999999999999999999999999999, 10)", "a result of money_mul does not fit"),
        ("money_add(99999999999999999999999999999999999999, 1)", "a result of money_add does not fit"),
        ("money_add(-99999999999999999999999999999999999999, -1)", "a result of money_add does not fit"),
        ("round_half_even(99999999999999999999999999999999999999, 2)", "a rounded amount does not fit"),
        ("money_mul(1.5::double, 2)", "money_mul takes decimals, not Float64"),
        ("money_mul('1', 2)", "money_mul takes decimals"),
        ("round_half_even(1.5, 39)", "a constant from 0 to 38"),
        ("money_allocate(1, make_array(0, 0))", "all weights are 0"),
        ("money_allocate(1, make_array(1, -1))", "a weight is NULL or less than 0"),
    ] {
        let error = answer(&format!("SELECT {sql}")).await.unwrap_err();
        assert!(error.contains(words), "{sql}: {error}");
    }
}

/// Values of every size, the edges among them.
fn amounts() -> impl Strategy<Value = i128> {
    let edges = prop_oneof![Just(0), Just(1), Just(-1), Just(LIMIT - 1), Just(1 - LIMIT)];
    prop_oneof![1 => edges, 4 => (any::<i128>(), 0_u32..127).prop_map(|(value, by)| (value >> by) % LIMIT)]
}

proptest! {
    #[test]
    fn arithmetic_is_that_of_big_integers(a in amounts(), b in amounts(), of_a in 0_i8..19, of_b in 0_i8..19) {
        let limit = BigInt::from(LIMIT);
        let small = |value: BigInt| i128::try_from(value).ok().filter(|value| BigInt::from(value.abs()) < limit);
        let product = small(BigInt::from(a) * b);
        prop_assert_eq!(fits(Arithmetic::multiply().apply((a, of_a), (b, of_b)), "").ok(), product);
        let scale = of_a.max(of_b);
        let wide = |value: i128, own: i8| BigInt::from(value) * BigInt::from(10).pow(u32::from((scale - own).unsigned_abs()));
        let sum = small(wide(a, of_a) + wide(b, of_b));
        let added = fits(Arithmetic::add().apply((a, of_a), (b, of_b)), "").ok();
        // Each side has to fit by itself, too.
        prop_assert!(added == sum || (added.is_none() && [wide(a, of_a), wide(b, of_b)].iter().any(|side| side.bits() > 126)));
    }

    #[test]
    fn the_nearest_is_taken_and_the_even_one_of_two(value in amounts(), digits in 0_u32..40) {
        let rounded = BigInt::from(halves_to_even(value, digits));
        let unit = BigInt::from(10).pow(digits);
        let twice_off: BigInt = (&rounded * &unit - value) * 2;
        let off = if twice_off < BigInt::from(0) { -twice_off } else { twice_off };
        prop_assert!(off <= unit, "{} is not the nearest", rounded);
        if off == unit {
            prop_assert_eq!(&rounded % 2, BigInt::from(0));
        }
    }

    #[test]
    fn parts_add_up_and_lie_within_a_unit_of_their_share(
        total in amounts(),
        weights in prop::collection::vec(amounts().prop_map(i128::abs), 1..20),
    ) {
        let sum: BigInt = weights.iter().map(|weight| BigInt::from(*weight)).sum();
        let Some(parts) = allocated(total, &weights) else {
            prop_assert!(sum == BigInt::from(0) && total != 0);
            return Ok(());
        };
        prop_assert_eq!(parts.iter().map(|part| BigInt::from(*part)).sum::<BigInt>(), BigInt::from(total));
        for (part, weight) in parts.iter().zip(&weights) {
            // |part - total * weight / sum| < 1
            let off = BigInt::from(*part) * &sum - BigInt::from(total) * weight;
            prop_assert!(sum == BigInt::from(0) || (off < sum && -off.clone() < sum), "{} of {}", part, weight);
        }
        // A heavier line never gets less.
        for (a, b) in parts.iter().zip(&weights).flat_map(|a| parts.iter().zip(&weights).map(move |b| (a, b))) {
            prop_assert!(a.1 <= b.1 || a.0.abs() >= b.0.abs());
        }
    }
}
