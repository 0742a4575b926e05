/*
 * define_props.c
 *		One property of a node: is it of the right shape and range, and what
 *		is its canonical form in the stored body.
 *
 * Called by define_body.c alone.  Looks at each property by itself; what they
 * mean together is define_body.c's.  Constructors promise nothing: a property
 * may be any JSON.
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "parser/parse_type.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "define_build.h"
#include "spi_util.h"
#include "types.h"

typedef enum PropertyType
{
	PROPERTY_SQL,
	PROPERTY_EXPRESSION,
	PROPERTY_DURATION,			/* an expression, or an interval as such */
	PROPERTY_INSTANT,			/* the same of a time */
	PROPERTY_SERVER,
	PROPERTY_NAME,
	PROPERTY_NAMES,
	PROPERTY_FLAG,				/* false is the default */
	PROPERTY_BOOLEAN,
	PROPERTY_TIMEOUT,			/* of one attempt */
	PROPERTY_WAIT,				/* for an answer that people may give */
	PROPERTY_POLICY,
	PROPERTY_FAILURE,
	PROPERTY_CHOICE,
	PROPERTY_TYPE,
	PROPERTY_ROWS,
	PROPERTY_COUNT,				/* 1 or more */
} PropertyType;

#define ON_CALLS	(ON_STEP | ON_CALL)

static const struct Property
{
	const char *key;
	int			on;
	PropertyType type;
}			properties[] =
{
	{"action", ON_STEP, PROPERTY_SQL},
	{"after", ON_NODES, PROPERTY_NAMES},
	{"at", ON_SLEEP_UNTIL, PROPERTY_INSTANT},
	{"by", ON_ASKED, PROPERTY_NAME},
	{"callback", ON_STEP, PROPERTY_FLAG},
	{"callback_timeout", ON_STEP, PROPERTY_WAIT},
	{"compensation", ON_STEP | ON_UNDO, PROPERTY_SQL},
	{"compensation_retry", ON_STEP, PROPERTY_POLICY},
	{"compensation_server", ON_STEP, PROPERTY_SERVER},
	{"compensation_timeout", ON_STEP, PROPERTY_TIMEOUT},
	{"condition", ON_NODES | ON_WHEN, PROPERTY_EXPRESSION},
	{"decline_if", ON_STEP, PROPERTY_EXPRESSION},
	{"definition", ON_CALL, PROPERTY_NAME},
	{"delivery", ON_STEP, PROPERTY_CHOICE},
	{"duration", ON_SLEEP, PROPERTY_DURATION},
	{"expect_rows", ON_STEP, PROPERTY_ROWS},
	{"for_each", ON_CALLS, PROPERTY_EXPRESSION},
	{"input", ON_CALL, PROPERTY_EXPRESSION},
	{"max", ON_LOOP, PROPERTY_COUNT},
	{"max_parallel", ON_CALLS, PROPERTY_COUNT},
	{"max_tries", ON_SAVEPOINT, PROPERTY_COUNT},
	{"on_failure", ON_NODES, PROPERTY_FAILURE},
	{"on_timeout", ON_SIGNAL, PROPERTY_CHOICE},
	{"pivot", ON_CALLS, PROPERTY_FLAG},
	{"queue", ON_STEP, PROPERTY_NAME},
	{"result", ON_STEP, PROPERTY_CHOICE},
	{"retriable", ON_STEP, PROPERTY_BOOLEAN},
	{"retry", ON_CALLS | ON_UNDO, PROPERTY_POLICY},
	{"returns", ON_STEP, PROPERTY_TYPE},
	{"server", ON_STEP | ON_UNDO, PROPERTY_SERVER},
	{"signal", ON_SIGNAL, PROPERTY_NAME},
	{"timeout", ON_STEP | ON_UNDO, PROPERTY_TIMEOUT},
	{"timeout", ON_SIGNAL, PROPERTY_WAIT},
	{"while", ON_LOOP, PROPERTY_EXPRESSION},
};

/* The first value is the default, and not stored. */
static const struct Choice
{
	const char *key;
	const char *hint;
	int			n;
	const char *values[4];
}			choices[] =
{
	{"delivery", "Use 'at_least_once' or 'at_most_once'.",
	2, {"at_least_once", "at_most_once"}},
	{"on_timeout", "Use 'fail' or 'continue'.", 2, {"fail", "continue"}},
	{"result", "Use 'rows', 'first' or 'none'; without it, one row is expected.",
	4, {"one", "rows", "first", "none"}},
};

/* ---- writing JSON ---- */

void
saga_put(SagaBuilder *b, const char *key, JsonbValue *value)
{
	JsonbValue	k;

	k.type = jbvString;
	k.val.string.val = unconstify(char *, key);
	k.val.string.len = strlen(key);
	pushJsonbValue(&b->out, WJB_KEY, &k);
	if (value != NULL)
		pushJsonbValue(&b->out, WJB_VALUE, value);
}

void
saga_put_text(SagaBuilder *b, const char *key, const char *text)
{
	JsonbValue	v;

	v.type = jbvString;
	v.val.string.val = pstrdup(text);
	v.val.string.len = strlen(text);
	saga_put(b, key, &v);
}

/* Numbers without trailing zeros, so that equal ones look equal. */
void
saga_put_number(SagaBuilder *b, const char *key, Numeric number)
{
	JsonbValue	v;

	v.type = jbvNumeric;
	v.val.numeric = DatumGetNumeric(DirectFunctionCall1(numeric_trim_scale,
														NumericGetDatum(number)));
	saga_put(b, key, &v);
}

static double
number_of(const JsonbValue *v)
{
	return DatumGetFloat8(DirectFunctionCall1(numeric_float8_no_overflow,
											  NumericGetDatum(v->val.numeric)));
}

/* ---- properties of a node ---- */

static void
bad_type(SagaBuilder *b, const char *key, const char *expected)
{
	saga_fault(b->faults, b->step, "Build nodes with saga.step() and the other constructors.",
			   "%s: expected %s", key, expected);
}

static char *
text_of(const JsonbValue *v)
{
	return pnstrdup(v->val.string.val, v->val.string.len);
}

bool
saga_is_blank(const char *text)
{
	return text[strspn(text, " \t\r\n\f\v")] == '\0';
}

static bool
is_array(const JsonbValue *v)
{
	return v->type == jbvBinary && JsonContainerIsArray(v->val.binary.data);
}

static void
add_names(SagaBuilder *b, const char *key, const JsonbValue *v)
{
	JsonbContainer *array;

	if (!is_array(v))
	{
		bad_type(b, key, "an array of names");
		return;
	}
	array = v->val.binary.data;
	saga_put(b, key, NULL);
	pushJsonbValue(&b->out, WJB_BEGIN_ARRAY, NULL);
	for (uint32 i = 0; i < JsonContainerSize(array); i++)
	{
		JsonbValue *name = getIthJsonbValueFromContainer(array, i);

		if (name->type == jbvString)
			pushJsonbValue(&b->out, WJB_ELEM, name);
		else
			saga_fault(b->faults, b->step, "Leave the NULL out.",
					   "%s: an element is no name", key);
	}
	pushJsonbValue(&b->out, WJB_END_ARRAY, NULL);
}

static void
add_timeout(SagaBuilder *b, const char *key, const JsonbValue *v)
{
	if (v->type != jbvNumeric)
		bad_type(b, key, "a number of seconds");
	else if (number_of(v) < 0.001 ||
			 number_of(v) > (double) SAGA_MAX_TIMEOUT / SAGA_SECOND)
		saga_fault(b->faults, b->step,
				   "It bounds one attempt; the saga as a whole has a deadline.",
				   "%s must be at least 1 ms and at most 1 day", key);
	else
		saga_put_number(b, key, v->val.numeric);
}

/*
 * A status of HTTP (404) or a class of them (4xx), as the code that stands
 * for it (H0404, H04); else NULL.
 */
static char *
http_pattern(const JsonbValue *v)
{
	const char *p = v->val.string.val;

	if (v->type != jbvString || v->val.string.len != 3 ||
		p[0] < '1' || p[0] > '5')
		return NULL;
	if ((p[1] == 'x' || p[1] == 'X') && (p[2] == 'x' || p[2] == 'X'))
		return psprintf("H0%c", p[0]);
	if (p[1] >= '0' && p[1] <= '9' && p[2] >= '0' && p[2] <= '9')
		return psprintf("H0%.3s", p);
	return NULL;
}

static bool
is_sqlstate_pattern(const JsonbValue *v)
{
	if (v->type != jbvString ||
		(v->val.string.len != 2 && v->val.string.len != 5))
		return false;
	for (int i = 0; i < v->val.string.len; i++)
	{
		char		c = v->val.string.val[i];

		if (!(c >= '0' && c <= '9') && !(c >= 'A' && c <= 'Z'))
			return false;
	}
	return true;
}

/* One of decline_on, retry_on, stuck_on; 'seen' is shared by the three. */
static void
add_patterns(SagaBuilder *b, const char *key, const char *list,
			 const JsonbValue *v, List **seen)
{
	JsonbContainer *array;

	if (!is_array(v))
	{
		bad_type(b, psprintf("%s: %s", key, list), "an array of SQLSTATEs");
		return;
	}
	array = v->val.binary.data;
	if (JsonContainerSize(array) == 0)
		return;
	saga_put(b, list, NULL);
	pushJsonbValue(&b->out, WJB_BEGIN_ARRAY, NULL);
	for (uint32 i = 0; i < JsonContainerSize(array); i++)
	{
		JsonbValue *code = getIthJsonbValueFromContainer(array, i);
		char	   *status = http_pattern(code);
		ListCell   *lc;

		if (status != NULL)
		{
			code->val.string.val = status;
			code->val.string.len = strlen(status);
		}
		else if (!is_sqlstate_pattern(code))
		{
			saga_fault(b->faults, b->step,
					   "Write five characters, or two for a whole class, as in '{23505,40}', or a status of HTTP, as in '{404,5xx}'.",
					   "%s: %s: \"%s\" is no SQLSTATE", key, list,
					   code->type == jbvString ? text_of(code) : "NULL");
			continue;
		}
		foreach(lc, *seen)
			if (strcmp(lfirst(lc), text_of(code)) == 0)
				saga_fault(b->faults, b->step,
						   "One code can mean one thing only.",
						   "%s: \"%s\" is listed twice", key, text_of(code));
		*seen = lappend(*seen, text_of(code));
		pushJsonbValue(&b->out, WJB_ELEM, code);
	}
	pushJsonbValue(&b->out, WJB_END_ARRAY, NULL);
}

static const struct
{
	const char *key;
	double		min,
				max;
	bool		integer;
	const char *range;
}			policy_numbers[] =
{
	{"max_attempts", 0, 1000000, true, "a whole number from 1 to 1000000, or 0 for no limit"},
	{"initial_interval", 0, 86400, false, "at most 1 day and not negative"},
	{"max_interval", 0, 86400, false, "at most 1 day and not negative"},
	{"backoff", 1, 1000, false, "from 1 to 1000"},
	{"jitter", 0, 1, false, "from 0 to 1"},
};

static void
add_policy_number(SagaBuilder *b, const char *key, const char *name,
				  const JsonbValue *v)
{
	for (int i = 0; i < (int) lengthof(policy_numbers); i++)
	{
		double		number;

		if (strcmp(policy_numbers[i].key, name) != 0)
			continue;
		number = v->type == jbvNumeric ? number_of(v) : -1;
		if (v->type != jbvNumeric ||
			number < policy_numbers[i].min || number > policy_numbers[i].max ||
			(policy_numbers[i].integer && number != rint(number)))
			saga_fault(b->faults, b->step, NULL, "%s: %s must be %s", key, name,
					   policy_numbers[i].range);
		else
			saga_put_number(b, name, v->val.numeric);
		return;
	}
	saga_fault(b->faults, b->step, "Build policies with saga.retry_policy().",
			   "%s: unknown property \"%s\"", key, name);
}

static void
add_policy(SagaBuilder *b, const char *key, const JsonbValue *v)
{
	JsonbContainer *policy;
	JsonbIterator *it;
	JsonbValue	name;
	JsonbValue	value;
	List	   *seen = NIL;
	double		first;

	if (v->type != jbvBinary || !JsonContainerIsObject(v->val.binary.data))
	{
		bad_type(b, key, "a retry policy");
		return;
	}
	policy = v->val.binary.data;
	if (JsonContainerSize(policy) == 0)
		return;
	saga_put(b, key, NULL);
	pushJsonbValue(&b->out, WJB_BEGIN_OBJECT, NULL);
	it = JsonbIteratorInit(policy);
	(void) JsonbIteratorNext(&it, &value, true);
	while (JsonbIteratorNext(&it, &name, true) == WJB_KEY)
	{
		char	   *property = text_of(&name);

		(void) JsonbIteratorNext(&it, &value, true);
		if (value.type == jbvNull)
			continue;
		if (strcmp(property, "decline_on") == 0 ||
			strcmp(property, "retry_on") == 0 ||
			strcmp(property, "stuck_on") == 0)
			add_patterns(b, key, property, &value, &seen);
		else
			add_policy_number(b, key, property, &value);
	}
	pushJsonbValue(&b->out, WJB_END_OBJECT, NULL);

	first = saga_json_number(policy, "initial_interval", 0);
	if (first > saga_json_number(policy, "max_interval", 86400))
		saga_fault(b->faults, b->step, NULL,
				   "%s: initial_interval is longer than max_interval", key);
}

static void
add_failure(SagaBuilder *b, const char *key, const JsonbValue *v)
{
	char	   *text = v->type == jbvString ? text_of(v) : NULL;

	if (text == NULL)
		bad_type(b, key, "text");
	else if (strcmp(text, "compensate") != 0 && strcmp(text, "continue") != 0 &&
			 strcmp(text, "stuck") != 0 &&
			 (strncmp(text, "goto:", 5) != 0 || text[5] == '\0'))
		saga_fault(b->faults, b->step,
				   "Use 'compensate', 'continue', 'stuck' or 'goto:' with the name of a saga.savepoint_step().",
				   "%s: unknown value \"%s\"", key, text);
	else
		saga_put_text(b, key, text);
}

static void
add_choice(SagaBuilder *b, const char *key, const JsonbValue *v)
{
	char	   *text = v->type == jbvString ? text_of(v) : NULL;
	const struct Choice *choice = choices;

	if (text == NULL)
	{
		bad_type(b, key, "text");
		return;
	}
	while (strcmp(choice->key, key) != 0)
		choice++;
	for (int i = 0; i < choice->n; i++)
		if (strcmp(choice->values[i], text) == 0)
		{
			if (i > 0)
				saga_put_text(b, key, text);
			return;
		}
	saga_fault(b->faults, b->step, choice->hint, "%s: unknown value \"%s\"",
			   key, text);
}

static void
add_name(SagaBuilder *b, const char *key, const JsonbValue *v)
{
	JsonbValue	copy = *v;
	bool		control = false;

	if (v->type != jbvString)
	{
		bad_type(b, key, "a name");
		return;
	}
	for (int i = 0; i < v->val.string.len; i++)
		control |= (unsigned char) v->val.string.val[i] < ' ' ||
			v->val.string.val[i] == 0x7f;
	if (saga_is_blank(text_of(v)))
		saga_fault(b->faults, b->step, "Give a name.", "%s is empty", key);
	else if (v->val.string.len > SAGA_MAX_DEFINITION_NAME || control)
		saga_fault(b->faults, b->step, "Give a short plain name.",
				   "%s is longer than %d bytes or contains a control character",
				   key, SAGA_MAX_DEFINITION_NAME);
	else
		saga_put(b, key, &copy);
}

/* ---- expressions ---- */

static bool
check_text(SagaBuilder *b, const char *key, const JsonbValue *v,
		   const char *hint)
{
	if (v->type != jbvString)
		bad_type(b, key, "text");
	else if (saga_is_blank(text_of(v)))
		saga_fault(b->faults, b->step, hint, "%s is empty", key);
	else
		return true;
	return false;
}

/* Reads a literal; see saga_try(). */
typedef struct Literal
{
	char	   *text;
	bool		instant;
	char	   *iso;
} Literal;

static void
read_literal(void *arg)
{
	Literal    *l = arg;
	char		buffer[MAXDATELEN + 1];
	int			utc = 0;

	if (l->instant)
	{
		Datum		at = DirectFunctionCall3(timestamptz_in,
											 CStringGetDatum(l->text),
											 ObjectIdGetDatum(InvalidOid),
											 Int32GetDatum(-1));

		JsonEncodeDateTime(buffer, at, TIMESTAMPTZOID, &utc);
	}
	else
	{
		Datum		span = DirectFunctionCall3(interval_in,
											   CStringGetDatum(l->text),
											   ObjectIdGetDatum(InvalidOid),
											   Int32GetDatum(-1));
		struct pg_itm itm;

		interval2itm(*DatumGetIntervalP(span), &itm);
		EncodeInterval(&itm, INTSTYLE_ISO_8601, buffer);
	}
	l->iso = pstrdup(buffer);
}

/*
 * An interval or timestamp as such is stored as the SQL literal it is: it
 * means the same under every setting, and equal ones look equal.  No
 * expression is one: it would have to begin with a letter, a colon, a quote
 * or a bracket, or fail to be read.
 */
static void
add_time(SagaBuilder *b, const char *key, const JsonbValue *v, bool instant)
{
	Literal		l = {.instant = instant};
	const char *first;

	if (!check_text(b, key, v,
					instant ? "Give a timestamp, or an expression as in ':due'."
					: "Give an interval as in '10 minutes', or an expression as in ':delay'."))
		return;
	l.text = text_of(v);
	first = l.text + strspn(l.text, " \t\r\n\f\v");
	if (strchr(instant ? "0123456789" : "0123456789+-.@P", *first) != NULL &&
		pg_strncasecmp(first + 1, "inf", 3) != 0 &&
		saga_try(read_literal, &l) == NULL)
		saga_put_text(b, key, psprintf("'%s'", l.iso));
	else
		saga_put_text(b, key, l.text);
}

static void
add_wait(SagaBuilder *b, const char *key, const JsonbValue *v)
{
	if (v->type != jbvNumeric)
		bad_type(b, key, "a number of seconds");
	else if (number_of(v) < 0.001 || number_of(v) > SAGA_MAX_SECONDS)
		saga_fault(b->faults, b->step, "Leave it out to wait for ever.",
				   "%s must be at least 1 ms and at most 100 years", key);
	else
		saga_put_number(b, key, v->val.numeric);
}

static void
add_whole(SagaBuilder *b, const char *key, const JsonbValue *v, int min)
{
	if (v->type != jbvNumeric || number_of(v) != rint(number_of(v)) ||
		number_of(v) < min || number_of(v) > PG_INT32_MAX)
		saga_fault(b->faults, b->step, NULL,
				   min == 0 ? "%s must be a whole number and not negative"
				   : "%s must be a whole number of at least 1", key);
	else
		saga_put_number(b, key, v->val.numeric);
}

/* ---- types ---- */

static void
look_up_type(void *arg)
{
	SagaTypeLookup *l = arg;
	bool		usable;

	if (l->typename != NULL)
		typenameTypeIdAndMod(NULL, l->typename, &l->type, &l->typmod);
	else
		parseTypeString(l->text, &l->type, &l->typmod, false);
	if (get_typtype(l->type) == TYPTYPE_PSEUDO)
	{
		l->problem = psprintf("%s is a pseudo-type", format_type_be(l->type));
		return;
	}
	/* by way of SQL's function, whose C signature is the same in all versions */
	usable = DatumGetBool(DirectFunctionCall3(has_type_privilege_id_id,
											  ObjectIdGetDatum(GetUserId()),
											  ObjectIdGetDatum(l->type),
											  PointerGetDatum(cstring_to_text("USAGE"))));
	if (!usable)
		aclcheck_error_type(ACLCHECK_NO_PRIV, l->type);
	l->name = saga_type_name(l->type, l->typmod);
	l->has_domain = saga_type_resolve(l->type, l->typmod,
									  CurrentMemoryContext)->has_domain;
}

void
saga_fault_from_error(SagaBuilder *b, const char *prefix, const ErrorData *error)
{
	SagaFault  *fault = saga_fault(b->faults, b->step, error->hint,
								   "%s: %s", prefix, error->message);

	strlcpy(fault->sqlstate, unpack_sql_state(error->sqlerrcode),
			sizeof(fault->sqlstate));
}

bool
saga_put_find_type(SagaBuilder *b, const char *prefix, SagaTypeLookup *l)
{
	ErrorData  *error = saga_try(look_up_type, l);

	if (error != NULL)
		saga_fault_from_error(b, prefix, error);
	else if (l->problem != NULL)
		saga_fault(b->faults, b->step, "Use a type that values can have.",
				   "%s: %s", prefix, l->problem);
	return error == NULL && l->problem == NULL;
}

static void
add_type(SagaBuilder *b, const char *key, const JsonbValue *v)
{
	SagaTypeLookup	l = {0};

	if (v->type != jbvString)
	{
		bad_type(b, key, "the name of a type");
		return;
	}
	l.text = text_of(v);
	if (!saga_put_find_type(b, key, &l))
		return;

	/* checking a result must not run code of the domain's owner */
	if (l.has_domain)
		saga_fault(b->faults, b->step, "Name the type below the domain.",
				   "%s: %s is or contains a domain", key, l.text);
	else
		saga_put_text(b, key, l.name);
}

static void
add_property(SagaBuilder *b, const struct Property *p, const JsonbValue *v)
{
	JsonbValue	copy = *v;

	switch (p->type)
	{
		case PROPERTY_SQL:
			if (check_text(b, p->key, v, "Give one SQL statement."))
				saga_put(b, p->key, &copy);
			break;
		case PROPERTY_EXPRESSION:
			if (check_text(b, p->key, v, "Give an SQL expression, as in ':total > 100'."))
				saga_put(b, p->key, &copy);
			break;
		case PROPERTY_DURATION:
		case PROPERTY_INSTANT:
			add_time(b, p->key, v, p->type == PROPERTY_INSTANT);
			break;
		case PROPERTY_SERVER:
			if (v->type != jbvString)
				bad_type(b, p->key, "the name of a server");
			else if (v->val.string.len == 0 && strcmp(p->key, "server") == 0)
				saga_fault(b->faults, b->step, "Leave it out to act in this database.",
						   "%s is empty", p->key);
			else
				saga_put(b, p->key, &copy);
			break;
		case PROPERTY_NAME:
			add_name(b, p->key, v);
			break;
		case PROPERTY_NAMES:
			add_names(b, p->key, v);
			break;
		case PROPERTY_FLAG:
		case PROPERTY_BOOLEAN:
			if (v->type != jbvBool)
				bad_type(b, p->key, "true or false");
			else if (v->val.boolean || p->type == PROPERTY_BOOLEAN)
				saga_put(b, p->key, &copy);
			break;
		case PROPERTY_TIMEOUT:
			add_timeout(b, p->key, v);
			break;
		case PROPERTY_WAIT:
			add_wait(b, p->key, v);
			break;
		case PROPERTY_POLICY:
			add_policy(b, p->key, v);
			break;
		case PROPERTY_FAILURE:
			add_failure(b, p->key, v);
			break;
		case PROPERTY_CHOICE:
			add_choice(b, p->key, v);
			break;
		case PROPERTY_TYPE:
			add_type(b, p->key, v);
			break;
		case PROPERTY_ROWS:
		case PROPERTY_COUNT:
			add_whole(b, p->key, v, p->type == PROPERTY_ROWS ? 0 : 1);
			break;
	}
}

bool
saga_put_property(SagaBuilder *b, int on, const char *key,
				  const JsonbValue *value)
{
	for (int i = 0; i < (int) lengthof(properties); i++)
		if (strcmp(properties[i].key, key) == 0 && (properties[i].on & on))
		{
			add_property(b, &properties[i], value);
			return true;
		}
	return false;
}
