/*
 * define_body.c
 *		Arguments of saga.define() -> the canonical body that is stored.
 *
 * Called by define.c alone, with the definition's search_path in force.
 * Looks at each argument and node by itself: what a node has and lacks, the
 * types of the input, the options (define_props.c: each property of a node).
 * How nodes stand to each other is found when the body is compiled
 * (definition.c, where the format is described).  Constructors promise
 * nothing: a node may hold any JSON.
 */
#include "postgres.h"

#include <math.h>

#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "parser/parser.h"
#include "utils/builtins.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "define_build.h"
#include "errors.h"
#include "spi_util.h"

static char *
text_of(const JsonbValue *v)
{
	return pnstrdup(v->val.string.val, v->val.string.len);
}

static void
put_integer(SagaBuilder *b, const char *key, int32 number)
{
	saga_put_number(b, key, int64_to_numeric(number));
}

/* ---- the input ---- */

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
add_input(SagaBuilder *b, char *text)
{
	InputParse	p = {.text = text};
	ErrorData  *error;
	ListCell   *lc;
	List	   *seen = NIL;

	saga_put(b, "input", NULL);
	pushJsonbValue(&b->out, WJB_BEGIN_ARRAY, NULL);
	if (!saga_is_blank(text) && (error = saga_try(parse_input, &p)) != NULL)
	{
		if (error->hint == NULL)
			error->hint = "Write it as the columns of a table: 'order_id bigint, total numeric(12,2)'.";
		saga_fault_from_error(b, "input", error);
		p.columns = NIL;
	}
	foreach(lc, p.columns)
	{
		ColumnDef  *column = lfirst_node(ColumnDef, lc);
		char	   *prefix = psprintf("input: field \"%s\"", column->colname);
		SagaTypeLookup	l = {.typename = column->typeName};

		if (list_member(seen, makeString(column->colname)))
			saga_fault(b->faults, NULL, "Give every field a name of its own.",
					   "%s is declared more than once", prefix);
		seen = lappend(seen, makeString(column->colname));
		if (column->collClause != NULL || column->typeName->setof)
			saga_fault(b->faults, NULL, "Give its name and type only.",
					   "%s: neither COLLATE nor SETOF can be given", prefix);
		if (!saga_put_find_type(b, prefix, &l))
			continue;
		pushJsonbValue(&b->out, WJB_BEGIN_OBJECT, NULL);
		saga_put_text(b, "name", column->colname);
		saga_put_text(b, "type", l.name);
		pushJsonbValue(&b->out, WJB_END_OBJECT, NULL);
	}
	pushJsonbValue(&b->out, WJB_END_ARRAY, NULL);
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

/* ---- faults that show only in a node as a whole ---- */

static bool
has(JsonbContainer *node, const char *key)
{
	return saga_json_get(node, key) != NULL;
}

static bool
text_is(JsonbContainer *node, const char *key, const char *text)
{
	char	   *found = saga_json_text(node, key);

	return found != NULL && strcmp(found, text) == 0;
}

static void
check_step(SagaBuilder *b, JsonbContainer *node)
{
	if (!has(node, "action"))
		saga_fault(b->faults, b->step,
				   "Give one SQL statement; saga.undo_step() makes a step of a compensation alone.",
				   "the step has no action");
	if (text_is(node, "result", "none") &&
		(has(node, "returns") || has(node, "decline_if")))
		saga_fault(b->faults, b->step, "Leave one of the two out.",
				   "the step %s a result it does not keep",
				   has(node, "returns") ? "declares the type of" : "looks at");
	if (!has(node, "compensation") &&
		(has(node, "compensation_server") || has(node, "compensation_timeout") ||
		 has(node, "compensation_retry")))
		saga_fault(b->faults, b->step, "Give the compensation too.",
				   "the step has settings for a compensation, but none");
	if (has(node, "queue") && has(node, "server"))
		saga_fault(b->faults, b->step, "Leave one of the two out.",
				   "the step has a server and a queue");
	if (has(node, "callback_timeout") && !has(node, "queue") &&
		!saga_json_bool(node, "callback"))
		saga_fault(b->faults, b->step, "Say callback => true too.",
				   "the step has a callback_timeout, but no callback");
}

/* What steps and calls have in common. */
static void
check_call(SagaBuilder *b, JsonbContainer *node)
{
	bool		pivot = saga_json_bool(node, "pivot");

	if (pivot && text_is(node, "on_failure", "continue"))
		saga_fault(b->faults, b->step,
				   "After the pivot the saga counts on what the pivot did: use 'compensate' or 'stuck'.",
				   "the pivot has on_failure => 'continue'");
	if (pivot && (has(node, "for_each") || has(node, "condition")))
		saga_fault(b->faults, b->step,
				   "There must be one moment from which the saga only goes forward: make a step of its own the pivot.",
				   "the pivot has a %s",
				   has(node, "for_each") ? "for_each" : "condition");
	if (has(node, "max_parallel") && !has(node, "for_each"))
		saga_fault(b->faults, b->step, "Give for_each too, or saga.parallel() fewer steps.",
				   "the step has max_parallel, but no for_each");
}

static void
check_cases(SagaBuilder *b, JsonbContainer *node)
{
	JsonbContainer *cases = saga_json_container(node, "cases");
	int			n = cases && JsonContainerIsArray(cases) ? JsonContainerSize(cases) : 0;

	if (n == 0)
		saga_fault(b->faults, b->step, "Give it one saga.when() or more.",
				   "the branch has no cases");
	for (int i = 0; i < n; i++)
	{
		JsonbValue *v = getIthJsonbValueFromContainer(cases, i);
		char	   *kind = v->type == jbvBinary
			? saga_json_text(v->val.binary.data, "kind") : NULL;

		if (kind == NULL ||
			(strcmp(kind, "when") != 0 && strcmp(kind, "otherwise") != 0))
			saga_fault(b->faults, b->step,
					   "Put the steps into saga.when() or saga.otherwise().",
					   "the branch has something that is no case");
		else if (strcmp(kind, "otherwise") == 0 && i < n - 1)
			saga_fault(b->faults, b->step,
					   "It is taken whenever no case before it was: put it last, and once.",
					   "a case comes after saga.otherwise()");
	}
}

static void
check_combination(SagaBuilder *b, JsonbContainer *node, int on)
{
	if (on == ON_STEP)
		check_step(b, node);
	if (on & (ON_STEP | ON_CALL))
		check_call(b, node);
	if (on == ON_UNDO && !has(node, "compensation"))
		saga_fault(b->faults, b->step, "Give one SQL statement.",
				   "the step has no compensation");
	if (on == ON_ASKED && !has(node, "by"))
		saga_fault(b->faults, b->step, "Use saga.start_procedure().",
				   "the step does not say which one asks for it");
	if (on == ON_CALL && !has(node, "definition"))
		saga_fault(b->faults, b->step, "Give the name of the definition to run.",
				   "the step calls no definition");
	if (on == ON_SLEEP && !has(node, "duration"))
		saga_fault(b->faults, b->step,
				   "Give an interval as in '10 minutes', or an expression as in ':delay'.",
				   "the step has no duration");
	if (on == ON_SLEEP_UNTIL && !has(node, "at"))
		saga_fault(b->faults, b->step,
				   "Give a timestamp, or an expression as in ':due'.",
				   "the step has no time");
	if (on == ON_SIGNAL && !has(node, "signal"))
		saga_fault(b->faults, b->step,
				   "Give the name that saga.signal() will be called with.",
				   "the step waits for no signal");
	if (on == ON_SIGNAL && text_is(node, "on_timeout", "continue") &&
		!has(node, "timeout"))
		saga_fault(b->faults, b->step, "Give a timeout.",
				   "the step says what a time-out means, but has none");
	if (on == ON_LOOP && !has(node, "while") && !has(node, "max"))
		saga_fault(b->faults, b->step, "Give while, max or both.",
				   "the loop has no end");
	if (on == ON_SAVEPOINT && has(node, "condition"))
		saga_fault(b->faults, b->step,
				   "Steps must be able to count on it; give the condition to what follows.",
				   "the save-point has a condition");
	if (on == ON_WHEN && !has(node, "condition"))
		saga_fault(b->faults, b->step,
				   "Give an expression, or use saga.otherwise().",
				   "a case has no condition");
	if (on == ON_BRANCH)
		check_cases(b, node);
}

/* ---- nodes ---- */

static const struct
{
	const char *name;
	int			on;
	const char *members;		/* the key of the nodes in it, or NULL */
}			kinds[] =
{
	{"step", ON_STEP, NULL},
	{"undo", ON_UNDO, NULL},
	{"parallel", ON_PARALLEL, "nodes"},
	{"call", ON_CALL, NULL},
	{"sleep", ON_SLEEP, NULL},
	{"sleep_until", ON_SLEEP_UNTIL, NULL},
	{"signal", ON_SIGNAL, NULL},
	{"branch", ON_BRANCH, "cases"},
	{"loop", ON_LOOP, "steps"},
	{"savepoint", ON_SAVEPOINT, NULL},
	{"asked", ON_ASKED, NULL},
	{"when", ON_WHEN, "steps"},
	{"otherwise", ON_OTHERWISE, "steps"},
};

static void
add_properties(SagaBuilder *b, JsonbContainer *node, int on, const char *members)
{
	JsonbIterator *it = JsonbIteratorInit(node);
	JsonbValue	key;
	JsonbValue	value;

	(void) JsonbIteratorNext(&it, &value, true);
	while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
	{
		char	   *name = text_of(&key);

		(void) JsonbIteratorNext(&it, &value, true);
		if (strcmp(name, "kind") == 0 || strcmp(name, "name") == 0 ||
			(members != NULL && strcmp(name, members) == 0) ||
			value.type == jbvNull)
			continue;
		if (!saga_put_property(b, on, name, &value))
			saga_fault(b->faults, b->step,
					   "Build nodes with saga.step() and the other constructors.",
					   "unknown property \"%s\"", name);
	}
}

static void
add_name(SagaBuilder *b, JsonbContainer *node, int on)
{
	char	   *name = saga_json_text(node, "name");
	const char *problem;

	/* the body of a for_each is a node of its own */
	b->nnodes += has(node, "for_each") ? 2 : 1;
	if (b->nnodes > SAGA_MAX_NODES)
		ereport(ERROR,
				(errcode(ERRCODE_SAGA_LIMIT),
				 errmsg("a definition cannot have more than %d steps",
						SAGA_MAX_NODES)));
	b->step = name;
	if (name == NULL)
	{
		saga_fault(b->faults, NULL, "Give every step a name.",
				   "step number %d has no name", b->nnodes);
		return;
	}
	problem = saga_step_name_problem(name);
	if (problem != NULL)
		saga_fault(b->faults, name,
				   "Other steps refer to it as :name; \"input\", \"steps\" and the system names have other meanings.",
				   "%s", problem);
	saga_put_text(b, "name", name);
}

static void add_node(SagaBuilder *b, JsonbValue *v, int allowed);

/* The nodes in a group, branch, case or loop; 'step' is whose they are. */
static void
add_members(SagaBuilder *b, JsonbContainer *node, int on, const char *key)
{
	JsonbContainer *members = saga_json_container(node, key);
	uint32		n = members != NULL && JsonContainerIsArray(members)
		? JsonContainerSize(members) : 0;

	if (n == 0 && on == ON_PARALLEL)
		saga_fault(b->faults, NULL, "Give saga.parallel() one step or more.",
				   "a parallel group has no steps");
	if (n == 0 && on == ON_LOOP)
		saga_fault(b->faults, b->step, "Give it one step or more.",
				   "the loop has no steps");
	saga_put(b, key, NULL);
	pushJsonbValue(&b->out, WJB_BEGIN_ARRAY, NULL);
	for (uint32 i = 0; i < n; i++)
	{
		const char *step = b->step;

		add_node(b, getIthJsonbValueFromContainer(members, i),
				 on == ON_BRANCH ? ON_CASES : ON_NODES);
		b->step = step;
	}
	pushJsonbValue(&b->out, WJB_END_ARRAY, NULL);
}

static void
add_node(SagaBuilder *b, JsonbValue *v, int allowed)
{
	JsonbContainer *node = v->type == jbvBinary ? v->val.binary.data : NULL;
	char	   *kind = node ? saga_json_text(node, "kind") : NULL;
	const char *members = NULL;
	int			on = 0;

	check_stack_depth();
	for (int i = 0; kind != NULL && i < (int) lengthof(kinds); i++)
		if (strcmp(kind, kinds[i].name) == 0)
		{
			on = kinds[i].on;
			members = kinds[i].members;
		}
	if ((on & allowed) == 0)
	{
		/* check_cases() has said so of a branch */
		if (on & ON_CASES)
			saga_fault(b->faults, b->step, "Give it to saga.branch_step().",
					   "saga.%s() stands outside of a branch", kind);
		else if (allowed != ON_CASES)
			saga_fault(b->faults, b->step,
					   "Build nodes with saga.step() and the other constructors.",
					   v->type == jbvNull ? "a node is NULL" : "a node is of no known kind");
		return;
	}

	pushJsonbValue(&b->out, WJB_BEGIN_OBJECT, NULL);
	saga_put_text(b, "kind", kind);
	if (on & ON_NAMED)
		add_name(b, node, on);
	else if (on == ON_PARALLEL)
		b->step = NULL;
	check_combination(b, node, on);
	add_properties(b, node, on, members);
	if (members != NULL)
		add_members(b, node, on, members);
	pushJsonbValue(&b->out, WJB_END_OBJECT, NULL);
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
add_interval(SagaBuilder *b, const char *key, const Interval *value, bool zero)
{
	double		seconds;

	if (value == NULL)
		return;
	seconds = interval_seconds(value);
	if (seconds > SAGA_MAX_SECONDS || (zero ? seconds < 0 : seconds < 0.001))
		saga_fault(b->faults, NULL, NULL, "%s must be %s and at most 100 years",
				   key, zero ? "not negative" : "positive");
	else
	{
		int64		usecs = (int64) rint(seconds * USECS_PER_SEC);

		saga_put_number(b, key, int64_div_fast_to_numeric(usecs, 6));
	}
}

static void
add_text(SagaBuilder *b, const char *key, const char *text, const char *hint)
{
	if (text == NULL)
		return;
	if (saga_is_blank(text))
		saga_fault(b->faults, NULL, hint, "%s is empty", key);
	else
		saga_put_text(b, key, text);
}

static void
put_element(SagaBuilder *b, const char *text)
{
	JsonbValue	v;

	v.type = jbvString;
	v.val.string.val = pstrdup(text);
	v.val.string.len = strlen(text);
	pushJsonbValue(&b->out, WJB_ELEM, &v);
}

static bool
check_protocol(SagaBuilder *b, const char *key, const char *protocol)
{
	if (strcmp(protocol, "saga") == 0 || strcmp(protocol, "two_phase") == 0)
		return true;
	saga_fault(b->faults, NULL, "Use 'saga' or 'two_phase'.",
			   "%s: unknown value \"%s\"", key, protocol);
	return false;
}

/* 'protocols' are stored where there is a choice, in one order. */
static void
add_protocols(SagaBuilder *b, const SagaDefineArgs *args)
{
	const char *protocol = args->protocol ? args->protocol : "saga";
	bool		known = check_protocol(b, "protocol", protocol);
	bool		both = false;

	if (known && strcmp(protocol, "saga") != 0)
		saga_put_text(b, "protocol", protocol);
	for (int i = 0; i < args->nprotocols; i++)
		if (check_protocol(b, "protocols", args->protocols[i]) && known &&
			strcmp(protocol, args->protocols[i]) != 0)
			both = true;
	if (both)
	{
		saga_put(b, "protocols", NULL);
		pushJsonbValue(&b->out, WJB_BEGIN_ARRAY, NULL);
		put_element(b, "saga");
		put_element(b, "two_phase");
		pushJsonbValue(&b->out, WJB_END_ARRAY, NULL);
	}
}

static void
add_options(SagaBuilder *b, const SagaDefineArgs *args)
{
	const char *order = args->compensation_order;

	if (args->input != NULL)
		add_input(b, args->input);
	add_text(b, "output", args->output,
			 "Give a JSON object as in '{\"id\": :order.id}', or an SQL expression.");
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
	add_protocols(b, args);
	if (order != NULL && strcmp(order, "graph") != 0 &&
		strcmp(order, "parallel") != 0 && strcmp(order, "reverse") != 0)
		saga_fault(b->faults, NULL, "Use 'reverse', 'graph' or 'parallel'.",
				   "compensation_order: unknown value \"%s\"", order);
	else if (order != NULL && strcmp(order, "reverse") != 0)
		saga_put_text(b, "compensation_order", order);
	add_text(b, "on_completed", args->on_completed, "Give one SQL statement.");
	add_text(b, "on_compensated", args->on_compensated, "Give one SQL statement.");
	add_text(b, "on_stuck", args->on_stuck, "Give one SQL statement.");
}

Jsonb *
saga_body_build(const SagaDefineArgs *args, SagaFaults *faults)
{
	SagaBuilder b = {.faults = faults};
	JsonbValue	null = {.type = jbvNull};

	pushJsonbValue(&b.out, WJB_BEGIN_OBJECT, NULL);
	put_integer(&b, "format", 1);
	saga_put(&b, "steps", NULL);
	pushJsonbValue(&b.out, WJB_BEGIN_ARRAY, NULL);
	if (args->nsteps == 0)
		saga_fault(faults, NULL, "Give steps => ARRAY[saga.step(...), ...].",
				   "the definition has no steps");
	for (int i = 0; i < args->nsteps; i++)
	{
		Jsonb	   *node;
		JsonbValue	v;

		b.step = NULL;
		if (args->step_nulls[i])
		{
			add_node(&b, &null, ON_NODES);
			continue;
		}
		node = DatumGetJsonbP(args->steps[i]);
		v.type = jbvBinary;
		v.val.binary.data = &node->root;
		v.val.binary.len = VARSIZE(node) - VARHDRSZ;
		add_node(&b, &v, ON_NODES);
	}
	pushJsonbValue(&b.out, WJB_END_ARRAY, NULL);
	b.step = NULL;
	add_options(&b, args);
	return JsonbValueToJsonb(pushJsonbValue(&b.out, WJB_END_OBJECT, NULL));
}
