// How a service tells the database something: by SQL, with the values as psql
// variables, never as part of the text.  SAGA_DATABASE is a libpq connection
// string of a role that may do nothing else.
'use strict';
const { execFile } = require('child_process');

function tell(sql, values) {
  return new Promise((resolve, reject) => {
    const args = ['-X', '-q', '-At', '-v', 'ON_ERROR_STOP=1', process.env.SAGA_DATABASE];
    for (const [name, value] of Object.entries(values)) args.splice(0, 0, '-v', `${name}=${value}`);
    // variables are only replaced in a script, not in -c
    const psql = execFile('psql', [...args, '-f', '-'], (error, out, err) =>
      error ? reject(new Error(err || error.message)) : resolve(out.trim()));
    psql.stdin.end(sql);
  });
}

// The same, again and again until the database has heard it.
async function tellUntilHeard(sql, values) {
  for (let wait = 200; ; wait = Math.min(wait * 2, 5000)) {
    try {
      return await tell(sql, values);
    } catch (error) {
      if (/SGT01|unknown token/.test(error.message)) return 'f';
      await new Promise(resolve => setTimeout(resolve, wait));
    }
  }
}

module.exports = { tell, tellUntilHeard };
