/*
 * escrow.c
 *		Counters whose amounts sagas reserve: sums that many sagas change at a
 *		time, none of them waiting for another to end (O'Neil, 1986).
 *
 * Called in local actions (saga.escrow) and in sessions (making and setting
 * counters).  Owns saga.escrow_counter and saga.escrow_reservation, but for
 * the end of a saga, when isolation.c makes its reservations final or lets
 * them go.
 *
 * A counter's row is locked for as long as the transaction that reserves
 * lasts, never by a saga's end: that only marks reservations final, and they
 * are added to the counter by whoever next has its row.  An amount is
 * refused when in the worst case (all that lowers the value happens and
 * nothing that raises it, or the reverse) a bound would be passed.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/numeric.h"

#include "compat.h"
#include "errors.h"
#include "isolation.h"
#include "spi_util.h"

PG_FUNCTION_INFO_V1(saga_create_escrow);
PG_FUNCTION_INFO_V1(saga_set_escrow);
PG_FUNCTION_INFO_V1(saga_drop_escrow);
PG_FUNCTION_INFO_V1(saga_escrow);

/* A counter, its row locked, and what is reserved of it. */
typedef struct Counter
{
	Datum		name;
	Datum		key;
	Numeric		value;
	Numeric		minimum;		/* NULL: none */
	Numeric		maximum;
	Numeric		down;			/* sum of what others would take, <= 0 */
	Numeric		up;				/* sum of what others would add */
	Numeric		mine;			/* what this step has reserved so far */
} Counter;

static Numeric
add(Numeric a, Numeric b)
{
	return DatumGetNumeric(DirectFunctionCall2(numeric_add, NumericGetDatum(a), NumericGetDatum(b)));
}

static int
compare(Numeric a, Numeric b)
{
	return DatumGetInt32(DirectFunctionCall2(numeric_cmp, NumericGetDatum(a), NumericGetDatum(b)));
}

static char *
number_text(Numeric n)
{
	return DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(n)));
}

static Numeric
zero(void)
{
	return int64_to_numeric(0);
}

static Numeric
column(int number)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, number, &isnull);

	return isnull ? NULL : DatumGetNumericCopy(value);
}

static char *
counter_name(const Counter *c)
{
	char	   *key = TextDatumGetCString(c->key);

	return key[0] ? psprintf("%s (%s)", TextDatumGetCString(c->name), key) :
		TextDatumGetCString(c->name);
}

/*
 * Lock the row, and add what has become final.  42704 if there is none, 42501
 * if it is another's.  saga NULL: 'mine' is of nobody.
 */
static void
open_counter(Counter *c, const pg_uuid_t *saga, int32 step)
{
	static SagaOwnQuery get = {
		NULL,
		"SELECT value, minimum, maximum, owner::oid FROM saga.escrow_counter"
		" WHERE counter = $1 AND key = $2 FOR UPDATE",
		2, {TEXTOID, TEXTOID}
	};
	static SagaOwnQuery settle = {
		NULL,
		"WITH gone AS (DELETE FROM saga.escrow_reservation"
		" WHERE counter = $1 AND key = $2 AND final RETURNING amount)"
		" UPDATE saga.escrow_counter SET value = value + s.amount"
		" FROM (SELECT pg_catalog.sum(amount) AS amount FROM gone) s"
		" WHERE counter = $1 AND key = $2 AND s.amount IS NOT NULL RETURNING value",
		2, {TEXTOID, TEXTOID}
	};
	static SagaOwnQuery reserved = {
		NULL,
		"SELECT coalesce(pg_catalog.sum(amount) FILTER (WHERE amount < 0 AND NOT mine), 0),"
		" coalesce(pg_catalog.sum(amount) FILTER (WHERE amount > 0 AND NOT mine), 0),"
		" coalesce(pg_catalog.sum(amount) FILTER (WHERE mine), 0)"
		" FROM (SELECT amount, coalesce(saga = $3 AND step = $4, false) AS mine"
		" FROM saga.escrow_reservation WHERE counter = $1 AND key = $2) r",
		4, {TEXTOID, TEXTOID, UUIDOID, INT4OID}
	};
	Datum		values[4] = {c->name, c->key, UUIDPGetDatum(saga), Int32GetDatum(step)};
	bool		isnull;
	Oid			owner;

	if (saga_own_query(&get, values, NULL) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("escrow counter \"%s\" does not exist", counter_name(c)),
				 errhint("Make it with saga.create_escrow().")));
	c->value = column(1);
	c->minimum = column(2);
	c->maximum = column(3);
	owner = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 4, &isnull));
	if (!has_privs_of_role(GetUserId(), owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for escrow counter \"%s\"", counter_name(c)),
				 errdetail("It belongs to role \"%s\".", GetUserNameFromId(owner, true))));
	if (saga_own_query(&settle, values, NULL) > 0)
		c->value = column(1);
	saga_own_query(&reserved, values, saga ? NULL : "  nn");
	c->down = column(1);
	c->up = column(2);
	c->mine = column(3);
}

/* Are the bounds kept whatever becomes of the reservations? */
static void
check_bounds(const Counter *c)
{
	Numeric		low = add(add(c->value, c->down), compare(c->mine, zero()) < 0 ? c->mine : zero());
	Numeric		high = add(add(c->value, c->up), compare(c->mine, zero()) > 0 ? c->mine : zero());

	if (c->minimum && compare(low, c->minimum) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_SAGA_DECLINED),
				 errmsg("escrow counter \"%s\" could fall below its minimum", counter_name(c)),
				 errdetail("Its value is %s, in the worst case %s; the minimum is %s.",
						   number_text(c->value), number_text(low), number_text(c->minimum))));
	if (c->maximum && compare(high, c->maximum) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_SAGA_DECLINED),
				 errmsg("escrow counter \"%s\" could rise above its maximum", counter_name(c)),
				 errdetail("Its value is %s, in the worst case %s; the maximum is %s.",
						   number_text(c->value), number_text(high), number_text(c->maximum))));
}

static Numeric
finite_argument(FunctionCallInfo fcinfo, int n, const char *what)
{
	Numeric		value;

	if (PG_ARGISNULL(n))
		return NULL;
	value = PG_GETARG_NUMERIC(n);
	if (numeric_is_nan(value) || numeric_is_inf(value))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s of an escrow counter must be a finite number", what)));
	return value;
}

static void
name_arguments(FunctionCallInfo fcinfo, Counter *c)
{
	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("name and key of an escrow counter must not be null")));
	memset(c, 0, sizeof(*c));
	c->name = PG_GETARG_DATUM(0);
	c->key = PG_GETARG_DATUM(1);
	c->down = c->up = c->mine = zero();
}

/*
 * saga.create_escrow(counter text, key text, value numeric, minimum numeric,
 * maximum numeric) -> void
 */
Datum
saga_create_escrow(PG_FUNCTION_ARGS)
{
	static SagaOwnQuery other = {
		NULL,
		"SELECT FROM saga.escrow_counter WHERE counter = $1 AND owner::oid <> $2 LIMIT 1",
		2, {TEXTOID, OIDOID}
	};
	static SagaOwnQuery make = {
		NULL,
		"INSERT INTO saga.escrow_counter (counter, key, value, minimum, maximum, owner)"
		" VALUES ($1, $2, $3, $4, $5, $6::regrole) ON CONFLICT DO NOTHING",
		6, {TEXTOID, TEXTOID, NUMERICOID, NUMERICOID, NUMERICOID, OIDOID}
	};
	Counter		c;
	Datum		values[6];
	char		nulls[7] = "      ";

	name_arguments(fcinfo, &c);
	c.value = finite_argument(fcinfo, 2, "the value");
	c.minimum = finite_argument(fcinfo, 3, "the minimum");
	c.maximum = finite_argument(fcinfo, 4, "the maximum");
	if (c.value == NULL)
		c.value = zero();
	if ((c.minimum && compare(c.value, c.minimum) < 0) ||
		(c.maximum && compare(c.value, c.maximum) > 0))
		ereport(ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("the value of escrow counter \"%s\" is not within its bounds",
						counter_name(&c))));

	SPI_connect();
	values[0] = c.name;
	values[1] = ObjectIdGetDatum(GetUserId());
	if (saga_own_query(&other, values, NULL) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("escrow counter \"%s\" belongs to another role",
						TextDatumGetCString(c.name))));
	values[1] = c.key;
	values[2] = NumericGetDatum(c.value);
	values[3] = NumericGetDatum(c.minimum);
	values[4] = NumericGetDatum(c.maximum);
	values[5] = ObjectIdGetDatum(GetUserId());
	nulls[3] = c.minimum ? ' ' : 'n';
	nulls[4] = c.maximum ? ' ' : 'n';
	if (saga_own_query(&make, values, nulls) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("escrow counter \"%s\" already exists", counter_name(&c)),
				 errhint("saga.set_escrow() changes it.")));
	SPI_finish();
	PG_RETURN_VOID();
}

/*
 * saga.set_escrow(counter text, key text, value numeric, add numeric,
 * minimum numeric, maximum numeric) -> numeric: the value now.  NULL leaves
 * what is there.
 */
Datum
saga_set_escrow(PG_FUNCTION_ARGS)
{
	static SagaOwnQuery change = {
		NULL,
		"UPDATE saga.escrow_counter SET value = $3, minimum = $4, maximum = $5"
		" WHERE counter = $1 AND key = $2",
		5, {TEXTOID, TEXTOID, NUMERICOID, NUMERICOID, NUMERICOID}
	};
	Counter		c;
	Datum		values[5];
	char		nulls[6] = "     ";
	Numeric		given;

	name_arguments(fcinfo, &c);
	SPI_connect();
	open_counter(&c, NULL, 0);
	if ((given = finite_argument(fcinfo, 2, "the value")) != NULL)
		c.value = given;
	if ((given = finite_argument(fcinfo, 3, "the amount")) != NULL)
		c.value = add(c.value, given);
	if ((given = finite_argument(fcinfo, 4, "the minimum")) != NULL)
		c.minimum = given;
	if ((given = finite_argument(fcinfo, 5, "the maximum")) != NULL)
		c.maximum = given;
	check_bounds(&c);
	values[0] = c.name;
	values[1] = c.key;
	values[2] = NumericGetDatum(c.value);
	values[3] = NumericGetDatum(c.minimum);
	values[4] = NumericGetDatum(c.maximum);
	nulls[3] = c.minimum ? ' ' : 'n';
	nulls[4] = c.maximum ? ' ' : 'n';
	saga_own_query(&change, values, nulls);
	c.value = DatumGetNumeric(SPI_datumTransfer(NumericGetDatum(c.value), false, -1));
	SPI_finish();
	PG_RETURN_NUMERIC(c.value);
}

/* saga.drop_escrow(counter text, key text) -> void */
Datum
saga_drop_escrow(PG_FUNCTION_ARGS)
{
	static SagaOwnQuery in_use = {
		NULL,
		"SELECT FROM saga.escrow_reservation WHERE counter = $1 AND key = $2 LIMIT 1",
		2, {TEXTOID, TEXTOID}
	};
	static SagaOwnQuery gone = {
		NULL,
		"DELETE FROM saga.escrow_counter WHERE counter = $1 AND key = $2",
		2, {TEXTOID, TEXTOID}
	};
	Counter		c;
	Datum		values[2];

	name_arguments(fcinfo, &c);
	SPI_connect();
	open_counter(&c, NULL, 0);
	values[0] = c.name;
	values[1] = c.key;
	if (saga_own_query(&in_use, values, NULL) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("escrow counter \"%s\" has reservations of sagas that run", counter_name(&c)),
				 errhint("saga.escrow_reservations lists them.")));
	saga_own_query(&gone, values, NULL);
	SPI_finish();
	PG_RETURN_VOID();
}

/* saga.escrow(counter text, key text, amount numeric) -> numeric */
Datum
saga_escrow(PG_FUNCTION_ARGS)
{
	static SagaOwnQuery reserve = {
		NULL,
		"INSERT INTO saga.escrow_reservation (saga, step, counter, key, amount) VALUES ($1, $2, $3, $4, $5)"
		" ON CONFLICT (saga, step, counter, key) DO UPDATE SET amount = excluded.amount",
		5, {UUIDOID, INT4OID, TEXTOID, TEXTOID, NUMERICOID}
	};
	SagaLocalAction *action = saga_local_require("saga.escrow", false);
	Counter		c;
	Datum		values[5];
	Numeric		amount;
	Numeric		rest;

	name_arguments(fcinfo, &c);
	amount = finite_argument(fcinfo, 2, "the amount");
	if (amount == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the amount must not be null")));
	SPI_connect();
	open_counter(&c, &action->saga_id, action->step);
	c.mine = add(c.mine, amount);
	check_bounds(&c);
	values[0] = UUIDPGetDatum(&action->saga_id);
	values[1] = Int32GetDatum(action->step);
	values[2] = c.name;
	values[3] = c.key;
	values[4] = NumericGetDatum(c.mine);
	saga_own_query(&reserve, values, NULL);
	action->took = true;
	rest = add(add(c.value, c.down), compare(c.mine, zero()) < 0 ? c.mine : zero());
	rest = DatumGetNumeric(SPI_datumTransfer(NumericGetDatum(rest), false, -1));
	SPI_finish();
	PG_RETURN_NUMERIC(rest);
}
