/*
 * define_body.c
 *		Arguments of saga.define() -> the canonical body that is stored.
 *
 * Called by define.c alone, with the definition's search_path in force.
 * Looks at each argument and node by itself: shape and range of every value,
 * types, the retry policies.  How nodes stand to each other is found when the
 * body is compiled (definition.c, where the format is described).  Constructors
 * promise nothing: a node may hold any JSON.
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "parser/parse_type.h"
#include "parser/parser.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "define.h"
#include "errors.h"
#include "spi_util.h"
#include "types.h"

/* Longest deadline and retention: keeps sums of times far from overflow. */
#define MAX_SECONDS		(100.0 * 366 * 86400)

/* Which nodes have a property. */
#define ON_STEP			1
#define ON_UNDO			2
#define ON_PARALLEL		4
#define ON_ALL			7

typedef enum PropertyType
{
	PROPERTY_SQL,
	PROPERTY_SERVER,
	PROPERTY_NAMES,
	PROPERTY_FLAG,				/* false is the default */
	PROPERTY_BOOLEAN,
	PROPERTY_TIMEOUT,
	PROPERTY_POLICY,
	PROPERTY_FAILURE,
	PROPERTY_SHAPE,
	PROPERTY_TYPE,
	PROPERTY_ROWS,
} PropertyType;

static const struct Property
{
	const char *key;
	int			on;
	PropertyType type;
}			properties[] =
{
	{"action", ON_STEP, PROPERTY_SQL},
	{"after", ON_ALL, PROPERTY_NAMES},
	{"compensation", ON_STEP | ON_UNDO, PROPERTY_SQL},
	{"compensation_retry", ON_STEP, PROPERTY_POLICY},
	{"compensation_server", ON_STEP, PROPERTY_SERVER},
	{"compensation_timeout", ON_STEP, PROPERTY_TIMEOUT},
	{"expect_rows", ON_STEP, PROPERTY_ROWS},
	{"on_failure", ON_STEP, PROPERTY_FAILURE},
	{"pivot", ON_STEP, PROPERTY_FLAG},
	{"result", ON_STEP, PROPERTY_SHAPE},
	{"retriable", ON_STEP, PROPERTY_BOOLEAN},
	{"retry", ON_STEP | ON_UNDO, PROPERTY_POLICY},
	{"returns", ON_STEP, PROPERTY_TYPE},
	{"server", ON_STEP | ON_UNDO, PROPERTY_SERVER},
	{"timeout", ON_STEP | ON_UNDO, PROPERTY_TIMEOUT},
};

typedef struct Builder
{
	SagaFaults *faults;
	JsonbParseState *out;
	int			nnodes;
	const char *step;			/* the node being built, or NULL */
} Builder;

/* ---- writing JSON ---- */

static void
put(Builder *b, const char *key, JsonbValue *value)
{
	JsonbValue	k;

	k.type = jbvString;
	k.val.string.val = unconstify(char *, key);
	k.val.string.len = strlen(key);
	pushJsonbValue(&b->out, WJB_KEY, &k);
	if (value != NULL)
		pushJsonbValue(&b->out, WJB_VALUE, value);
}

static void
put_text(Builder *b, const char *key, const char *text)
{
	JsonbValue	v;

	v.type = jbvString;
	v.val.string.val = pstrdup(text);
	v.val.string.len = strlen(text);
	put(b, key, &v);
}

/* Numbers without trailing zeros, so that equal ones look equal. */
static void
put_number(Builder *b, const char *key, Numeric number)
{
	JsonbValue	v;

	v.type = jbvNumeric;
	v.val.numeric = DatumGetNumeric(DirectFunctionCall1(numeric_trim_scale,
														NumericGetDatum(number)));
	put(b, key, &v);
}

static void
put_integer(Builder *b, const char *key, int32 number)
{
	put_number(b, key, int64_to_numeric(number));
}

static double
number_of(const JsonbValue *v)
{
	return DatumGetFloat8(DirectFunctionCall1(numeric_float8_no_overflow,
											  NumericGetDatum(v->val.numeric)));
}

/* ---- properties of a node ---- */

static void
bad_type(Builder *b, const char *key, const char *expected)
{
	saga_fault(b->faults, b->step, "Build nodes with saga.step() and the other constructors.",
			   "%s: expected %s", key, expected);
}

static char *
text_of(const JsonbValue *v)
{
	return pnstrdup(v->val.string.val, v->val.string.len);
}

static bool
is_blank(const char *text)
{
	return text[strspn(text, " \t\r\n\f\v")] == '\0';
}

static bool
is_array(const JsonbValue *v)
{
	return v->type == jbvBinary && JsonContainerIsArray(v->val.binary.data);
}

static void
add_names(Builder *b, const char *key, const JsonbValue *v)
{
	JsonbContainer *array;

	if (!is_array(v))
	{
		bad_type(b, key, "an array of names");
		return;
	}
	array = v->val.binary.data;
	put(b, key, NULL);
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
add_timeout(Builder *b, const char *key, const JsonbValue *v)
{
	if (v->type != jbvNumeric)
		bad_type(b, key, "a number of seconds");
	else if (number_of(v) < 0.001 ||
			 number_of(v) > (double) SAGA_MAX_TIMEOUT / SAGA_SECOND)
		saga_fault(b->faults, b->step,
				   "It bounds one attempt; the saga as a whole has a deadline.",
				   "%s must be at least 1 ms and at most 1 day", key);
	else
		put_number(b, key, v->val.numeric);
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
add_patterns(Builder *b, const char *key, const char *list,
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
	put(b, list, NULL);
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
add_policy_number(Builder *b, const char *key, const char *name,
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
			put_number(b, name, v->val.numeric);
		return;
	}
	saga_fault(b->faults, b->step, "Build policies with saga.retry_policy().",
			   "%s: unknown property \"%s\"", key, name);
}

static void
add_policy(Builder *b, const char *key, const JsonbValue *v)
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
	put(b, key, NULL);
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
add_failure(Builder *b, const char *key, const JsonbValue *v)
{
	char	   *text = v->type == jbvString ? text_of(v) : NULL;

	if (text == NULL)
		bad_type(b, key, "text");
	else if (strncmp(text, "goto:", 5) == 0)
		saga_fault(b->faults, b->step, "Use 'compensate', 'continue' or 'stuck'.",
				   "%s: savepoint \"%s\" does not exist", key, text + 5);
	else if (strcmp(text, "compensate") != 0 && strcmp(text, "continue") != 0 &&
			 strcmp(text, "stuck") != 0)
		saga_fault(b->faults, b->step, "Use 'compensate', 'continue' or 'stuck'.",
				   "%s: unknown value \"%s\"", key, text);
	else
		put_text(b, key, text);
}

static void
add_shape(Builder *b, const char *key, const JsonbValue *v)
{
	char	   *text = v->type == jbvString ? text_of(v) : NULL;

	if (text == NULL)
		bad_type(b, key, "text");
	else if (strcmp(text, "rows") == 0 || strcmp(text, "first") == 0 ||
			 strcmp(text, "none") == 0)
		put_text(b, key, text);
	else if (strcmp(text, "one") != 0)
		saga_fault(b->faults, b->step,
				   "Use 'rows', 'first' or 'none'; without it, one row is expected.",
				   "%s: unknown value \"%s\"", key, text);
}

/* ---- types ---- */

/* A look-up that may raise an error; see saga_try(). */
typedef struct TypeLookup
{
	const char *text;			/* what to parse, or: */
	TypeName   *typename;
	Oid			type;
	int32		typmod;
	char	   *name;			/* canonical */
	bool		has_domain;
	char	   *problem;
} TypeLookup;

static void
look_up_type(void *arg)
{
	TypeLookup *l = arg;
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

static void
fault_from_error(Builder *b, const char *prefix, const ErrorData *error)
{
	SagaFault  *fault = saga_fault(b->faults, b->step, error->hint,
								   "%s: %s", prefix, error->message);

	strlcpy(fault->sqlstate, unpack_sql_state(error->sqlerrcode),
			sizeof(fault->sqlstate));
}

static bool
find_type(Builder *b, const char *prefix, TypeLookup *l)
{
	ErrorData  *error = saga_try(look_up_type, l);

	if (error != NULL)
		fault_from_error(b, prefix, error);
	else if (l->problem != NULL)
		saga_fault(b->faults, b->step, "Use a type that values can have.",
				   "%s: %s", prefix, l->problem);
	return error == NULL && l->problem == NULL;
}

static void
add_type(Builder *b, const char *key, const JsonbValue *v)
{
	TypeLookup	l = {0};

	if (v->type != jbvString)
	{
		bad_type(b, key, "the name of a type");
		return;
	}
	l.text = text_of(v);
	if (!find_type(b, key, &l))
		return;

	/* checking a result must not run code of the domain's owner */
	if (l.has_domain)
		saga_fault(b->faults, b->step, "Name the type below the domain.",
				   "%s: %s is or contains a domain", key, l.text);
	else
		put_text(b, key, l.name);
}

typedef struct InputParse
{
	const char *text;
	List	   *columns;
} InputParse;

/* The real parser reads the declaration, as that of a table function. */
static void
parse_input(void *arg)
{
	InputParse *p = arg;
	List	   *parsed;
	SelectStmt *select;
	RangeFunction *function;

	parsed = raw_parser(psprintf("SELECT FROM f() AS x(%s\n)", p->text),
						RAW_PARSE_DEFAULT);
	if (list_length(parsed) == 1)
	{
		SelectStmt	bare = {.type = T_SelectStmt};

		select = (SelectStmt *) linitial_node(RawStmt, parsed)->stmt;
		if (IsA(select, SelectStmt) && list_length(select->fromClause) == 1 &&
			IsA(linitial(select->fromClause), RangeFunction))
		{
			function = linitial_node(RangeFunction, select->fromClause);
			bare.fromClause = select->fromClause;
			bare.limitOption = select->limitOption;
			p->columns = function->coldeflist;
			if (equal(select, &bare) && p->columns != NIL)
				return;
		}
	}
	ereport(ERROR,
			(errcode(ERRCODE_SYNTAX_ERROR),
			 errmsg("no list of fields with their types"),
			 errhint("Write it as the columns of a table: 'order_id bigint, total numeric(12,2)'.")));
}

static void
add_input(Builder *b, char *text)
{
	InputParse	p = {.text = text};
	ErrorData  *error;
	ListCell   *lc;
	List	   *seen = NIL;

	put(b, "input", NULL);
	pushJsonbValue(&b->out, WJB_BEGIN_ARRAY, NULL);
	if (!is_blank(text) && (error = saga_try(parse_input, &p)) != NULL)
	{
		if (error->hint == NULL)
			error->hint = "Write it as the columns of a table: 'order_id bigint, total numeric(12,2)'.";
		fault_from_error(b, "input", error);
		p.columns = NIL;
	}
	foreach(lc, p.columns)
	{
		ColumnDef  *column = lfirst_node(ColumnDef, lc);
		char	   *prefix = psprintf("input: field \"%s\"", column->colname);
		TypeLookup	l = {.typename = column->typeName};

		if (list_member(seen, makeString(column->colname)))
			saga_fault(b->faults, NULL, "Give every field a name of its own.",
					   "%s is declared more than once", prefix);
		seen = lappend(seen, makeString(column->colname));
		if (column->collClause != NULL || column->typeName->setof)
			saga_fault(b->faults, NULL, "Give its name and type only.",
					   "%s: neither COLLATE nor SETOF can be given", prefix);
		if (!find_type(b, prefix, &l))
			continue;
		pushJsonbValue(&b->out, WJB_BEGIN_OBJECT, NULL);
		put_text(b, "name", column->colname);
		put_text(b, "type", l.name);
		pushJsonbValue(&b->out, WJB_END_OBJECT, NULL);
	}
	pushJsonbValue(&b->out, WJB_END_ARRAY, NULL);
}

/* ---- nodes ---- */

static void
add_property(Builder *b, const struct Property *p, const JsonbValue *v)
{
	JsonbValue	copy = *v;

	switch (p->type)
	{
		case PROPERTY_SQL:
			if (v->type != jbvString)
				bad_type(b, p->key, "text");
			else if (is_blank(text_of(v)))
				saga_fault(b->faults, b->step, "Give one SQL statement.",
						   "%s is empty", p->key);
			else
				put(b, p->key, &copy);
			break;
		case PROPERTY_SERVER:
			if (v->type != jbvString)
				bad_type(b, p->key, "the name of a server");
			else if (v->val.string.len == 0 && strcmp(p->key, "server") == 0)
				saga_fault(b->faults, b->step, "Leave it out to act in this database.",
						   "%s is empty", p->key);
			else
				put(b, p->key, &copy);
			break;
		case PROPERTY_NAMES:
			add_names(b, p->key, v);
			break;
		case PROPERTY_FLAG:
		case PROPERTY_BOOLEAN:
			if (v->type != jbvBool)
				bad_type(b, p->key, "true or false");
			else if (v->val.boolean || p->type == PROPERTY_BOOLEAN)
				put(b, p->key, &copy);
			break;
		case PROPERTY_TIMEOUT:
			add_timeout(b, p->key, v);
			break;
		case PROPERTY_POLICY:
			add_policy(b, p->key, v);
			break;
		case PROPERTY_FAILURE:
			add_failure(b, p->key, v);
			break;
		case PROPERTY_SHAPE:
			add_shape(b, p->key, v);
			break;
		case PROPERTY_TYPE:
			add_type(b, p->key, v);
			break;
		case PROPERTY_ROWS:
			if (v->type != jbvNumeric || number_of(v) != rint(number_of(v)) ||
				number_of(v) < 0 || number_of(v) > PG_INT32_MAX)
				saga_fault(b->faults, b->step, NULL,
						   "%s must be a whole number and not negative", p->key);
			else
				put_number(b, p->key, v->val.numeric);
			break;
	}
}

const char *
saga_step_name_problem(const char *name)
{
	const unsigned char *p = (const unsigned char *) name;

	if (name[0] == '\0')
		return "the name is empty";
	if (strlen(name) > SAGA_MAX_STEP_NAME)
		return psprintf("the name is longer than %d bytes", SAGA_MAX_STEP_NAME);
	for (int i = 0; p[i] != '\0'; i++)
		if (!(p[i] >= 'a' && p[i] <= 'z') && !(p[i] >= 'A' && p[i] <= 'Z') &&
			p[i] != '_' && p[i] < 0x80 &&
			!(i > 0 && p[i] >= '0' && p[i] <= '9'))
			return "the name is not made of letters, digits and underscores, or begins with a digit";
	if (saga_system_name(name) >= 0 || strcmp(name, "input") == 0 ||
		strcmp(name, "steps") == 0)
		return "the name is reserved";
	return NULL;
}

/* Faults that show only in a node as a whole. */
static void
check_combination(Builder *b, JsonbContainer *node, int on)
{
	char	   *failure = saga_json_text(node, "on_failure");
	char	   *shape = saga_json_text(node, "result");

	if (on == ON_STEP && saga_json_get(node, "action") == NULL)
		saga_fault(b->faults, b->step,
				   "Give one SQL statement; saga.undo_step() makes a step of a compensation alone.",
				   "the step has no action");
	if (on == ON_UNDO && saga_json_get(node, "compensation") == NULL)
		saga_fault(b->faults, b->step, "Give one SQL statement.",
				   "the step has no compensation");
	if (saga_json_bool(node, "pivot") && failure && strcmp(failure, "continue") == 0)
		saga_fault(b->faults, b->step,
				   "After the pivot the saga counts on what the pivot did: use 'compensate' or 'stuck'.",
				   "the pivot has on_failure => 'continue'");
	if (shape && strcmp(shape, "none") == 0 && saga_json_get(node, "returns") != NULL)
		saga_fault(b->faults, b->step, "Leave one of the two out.",
				   "the step declares the type of a result it does not keep");
	if (saga_json_get(node, "compensation") == NULL &&
		(saga_json_get(node, "compensation_server") != NULL ||
		 saga_json_get(node, "compensation_timeout") != NULL ||
		 saga_json_get(node, "compensation_retry") != NULL))
		saga_fault(b->faults, b->step, "Give the compensation too.",
				   "the step has settings for a compensation, but none");
}

static void add_nodes(Builder *b, JsonbContainer *array);

static void
add_properties(Builder *b, JsonbContainer *node, int on)
{
	JsonbIterator *it = JsonbIteratorInit(node);
	JsonbValue	key;
	JsonbValue	value;

	(void) JsonbIteratorNext(&it, &value, true);
	while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
	{
		char	   *name = text_of(&key);
		const struct Property *property = NULL;

		(void) JsonbIteratorNext(&it, &value, true);
		if (strcmp(name, "kind") == 0 || strcmp(name, "name") == 0 ||
			(on == ON_PARALLEL && strcmp(name, "nodes") == 0) ||
			value.type == jbvNull)
			continue;
		for (int i = 0; i < (int) lengthof(properties); i++)
			if (strcmp(properties[i].key, name) == 0 && (properties[i].on & on))
				property = &properties[i];
		if (property == NULL)
			saga_fault(b->faults, b->step,
					   "Build nodes with saga.step() and the other constructors.",
					   "unknown property \"%s\"", name);
		else
			add_property(b, property, &value);
	}
}

static void
add_node(Builder *b, JsonbValue *v)
{
	JsonbContainer *node = v->type == jbvBinary ? v->val.binary.data : NULL;
	char	   *kind = node ? saga_json_text(node, "kind") : NULL;
	int			on = kind == NULL ? 0 :
		strcmp(kind, "step") == 0 ? ON_STEP :
		strcmp(kind, "undo") == 0 ? ON_UNDO :
		strcmp(kind, "parallel") == 0 ? ON_PARALLEL : 0;

	check_stack_depth();
	if (on == 0)
	{
		saga_fault(b->faults, NULL,
				   "Build nodes with saga.step() and the other constructors.",
				   v->type == jbvNull ? "a node is NULL" : "a node is of no known kind");
		return;
	}

	b->step = NULL;
	pushJsonbValue(&b->out, WJB_BEGIN_OBJECT, NULL);
	put_text(b, "kind", kind);
	if (on != ON_PARALLEL)
	{
		char	   *name = saga_json_text(node, "name");

		if (++b->nnodes > SAGA_MAX_NODES)
			ereport(ERROR,
					(errcode(ERRCODE_SAGA_LIMIT),
					 errmsg("a definition cannot have more than %d steps",
							SAGA_MAX_NODES)));
		b->step = name;
		if (name == NULL)
			saga_fault(b->faults, NULL, "Give every step a name.",
					   "step number %d has no name", b->nnodes);
		else
		{
			const char *problem = saga_step_name_problem(name);

			if (problem != NULL)
				saga_fault(b->faults, name,
						   "Other steps refer to it as :name; \"input\", \"steps\" and the system names have other meanings.",
						   "%s", problem);
			put_text(b, "name", name);
		}
	}
	check_combination(b, node, on);
	add_properties(b, node, on);
	if (on == ON_PARALLEL)
	{
		JsonbContainer *members = saga_json_container(node, "nodes");

		put(b, "nodes", NULL);
		pushJsonbValue(&b->out, WJB_BEGIN_ARRAY, NULL);
		if (members != NULL && JsonContainerIsArray(members) &&
			JsonContainerSize(members) > 0)
			add_nodes(b, members);
		else
			saga_fault(b->faults, NULL, "Give saga.parallel() one step or more.",
					   "a parallel group has no steps");
		pushJsonbValue(&b->out, WJB_END_ARRAY, NULL);
	}
	pushJsonbValue(&b->out, WJB_END_OBJECT, NULL);
	b->step = NULL;
}

static void
add_nodes(Builder *b, JsonbContainer *array)
{
	for (uint32 i = 0; i < JsonContainerSize(array); i++)
		add_node(b, getIthJsonbValueFromContainer(array, i));
}

/* ---- the definition's own properties ---- */

/* As EXTRACT(epoch FROM ...) has it. */
static double
interval_seconds(const Interval *i)
{
	return (double) i->time / USECS_PER_SEC + (double) i->day * SECS_PER_DAY +
		(double) (i->month / MONTHS_PER_YEAR) * SECS_PER_YEAR +
		(double) (i->month % MONTHS_PER_YEAR) * DAYS_PER_MONTH * SECS_PER_DAY;
}

static void
add_interval(Builder *b, const char *key, const Interval *value, bool zero)
{
	double		seconds;

	if (value == NULL)
		return;
	seconds = interval_seconds(value);
	if (seconds > MAX_SECONDS || (zero ? seconds < 0 : seconds < 0.001))
		saga_fault(b->faults, NULL, NULL, "%s must be %s and at most 100 years",
				   key, zero ? "not negative" : "positive");
	else
	{
		int64		usecs = (int64) rint(seconds * USECS_PER_SEC);

		put_number(b, key, int64_div_fast_to_numeric(usecs, 6));
	}
}

static void
add_hook(Builder *b, const char *key, const char *text)
{
	if (text == NULL)
		return;
	if (is_blank(text))
		saga_fault(b->faults, NULL, "Give one SQL statement.", "%s is empty", key);
	else
		put_text(b, key, text);
}

static void
add_options(Builder *b, const SagaDefineArgs *args)
{
	const char *order = args->compensation_order;

	if (args->input != NULL)
		add_input(b, args->input);
	add_interval(b, "deadline", args->deadline, false);
	add_interval(b, "retention", args->retention, true);
	add_interval(b, "key_retention", args->key_retention, true);
	if (args->has_max_running && args->max_running < 1)
		saga_fault(b->faults, NULL, "Leave it out for no limit.",
				   "max_running must be at least 1");
	else if (args->has_max_running)
		put_integer(b, "max_running", args->max_running);
	if (args->has_priority && args->priority != 0)
		put_integer(b, "priority", args->priority);
	if (order != NULL && strcmp(order, "graph") != 0 &&
		strcmp(order, "parallel") != 0 && strcmp(order, "reverse") != 0)
		saga_fault(b->faults, NULL, "Use 'reverse', 'graph' or 'parallel'.",
				   "compensation_order: unknown value \"%s\"", order);
	else if (order != NULL && strcmp(order, "reverse") != 0)
		put_text(b, "compensation_order", order);
	add_hook(b, "on_completed", args->on_completed);
	add_hook(b, "on_compensated", args->on_compensated);
	add_hook(b, "on_stuck", args->on_stuck);
}

Jsonb *
saga_body_build(const SagaDefineArgs *args, SagaFaults *faults)
{
	Builder		b = {.faults = faults};
	JsonbValue	null = {.type = jbvNull};

	pushJsonbValue(&b.out, WJB_BEGIN_OBJECT, NULL);
	put_integer(&b, "format", 1);
	put(&b, "steps", NULL);
	pushJsonbValue(&b.out, WJB_BEGIN_ARRAY, NULL);
	if (args->nsteps == 0)
		saga_fault(faults, NULL, "Give steps => ARRAY[saga.step(...), ...].",
				   "the definition has no steps");
	for (int i = 0; i < args->nsteps; i++)
	{
		Jsonb	   *node;
		JsonbValue	v;

		if (args->step_nulls[i])
		{
			add_node(&b, &null);
			continue;
		}
		node = DatumGetJsonbP(args->steps[i]);
		v.type = jbvBinary;
		v.val.binary.data = &node->root;
		v.val.binary.len = VARSIZE(node) - VARHDRSZ;
		add_node(&b, &v);
	}
	pushJsonbValue(&b.out, WJB_END_ARRAY, NULL);
	add_options(&b, args);
	return JsonbValueToJsonb(pushJsonbValue(&b.out, WJB_END_OBJECT, NULL));
}
