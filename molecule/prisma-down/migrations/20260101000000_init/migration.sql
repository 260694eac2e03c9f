CREATE TABLE "User" ("id" SERIAL PRIMARY KEY, "name" TEXT NOT NULL);
INSERT INTO "User" ("name") SELECT 'user ' || n FROM generate_series(1, 10) n;
